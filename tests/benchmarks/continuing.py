"""What going on from an encoder of other photos is worth,
and what it forgets with and without `method.keep`.

    python -m tests.benchmarks.continuing PHOTOS [--demo runs/demo] [--seeds 0] [--steps 2000]
        [--keep 0.1] [--rate 1e-3]

PHOTOS holds `train`, `validation` and `test`, each with a folder a class (../shared/data/clothing_cc0). The
first data are the demo's scenes, with labels for kNN. The first encoder is that of a finished `make demo`,
which learnt from a teacher; without `--demo` one learns other scenes by SimCLR for `--first-steps`. Then,
all by `configs/pretrain/small/simclr.yaml` on the train split of PHOTOS without labels:

    scratch     fresh weights, all of `--steps`
    quarter     fresh weights, a quarter of them
    continued   from the first encoder, a quarter of them
    held        the same with `method.keep`
    own         the same with SimCLR's loss beside distilling from the first encoder,
        with each weight of `--own`

Printed: linear probe and 10-shot accuracy on PHOTOS (`tests.benchmarks.clothing`), kNN accuracy on the
scenes' validation split (before: that of the first encoder), how far the weights moved,
and CPU seconds of each run.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path
from typing import Any

from tests.benchmarks.clothing import CONFIG, command, packed, probes


def main(arguments: list[str] | None = None) -> None:
    """Packs, pretrains, continues, probes and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.continuing", description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--demo", type=Path, help="folder of a finished `make demo`, whose encoder is the first one"
    )
    parser.add_argument("--scenes", type=int, default=2000, help="images of the first data (default: 2000)")
    parser.add_argument(
        "--first-steps", type=int, default=2000, help="steps on the first data (default: 2000)"
    )
    parser.add_argument(
        "--steps", type=int, default=2000, help="steps of the run from scratch (default: 2000)"
    )
    parser.add_argument(
        "--rate", type=float, default=1e-3, help="learning rate of what continues (default: 1e-3)"
    )
    parser.add_argument(
        "--keep", type=float, nargs="+", default=[0.1], help="method.keep to try (default: 0.1)"
    )
    parser.add_argument(
        "--own", type=float, nargs="*", default=[], help="weights of distilling from one's own start"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/continuing"))
    options, overrides = parser.parse_known_args(arguments)

    # -- both data sets -------------------------------------------------------------------------------------
    shards = packed(options.photos, options.out / "data")
    scenes = options.out / "scenes" if options.demo is None else options.demo / "data"
    if options.demo is None and not (scenes / "demo.json").exists():
        command("pretrain.data", "demo", str(scenes), "--images", str(options.scenes))
    first_train, first_test = scenes / "train", scenes / "validation"

    # -- a run of each kind, and what it knows --------------------------------------------------------------
    print(
        "\n"
        f"{'seed':>4}  {'run':12}  {'linear probe':>12}  {'10-shot':>8}  {'kNN, scenes':>11}  {'moved':>6}  "
        f"{'CPU s':>6}"
    )
    rows = []
    for seed in options.seeds:
        out = options.out / f"seed{seed}"
        learnt = out / "first" if options.demo is None else options.demo / "pretrain"
        if options.demo is None:
            run(learnt, first_train, seed, options.first_steps, *overrides)
        first = [f"encoder.url={learnt / 'encoder'}", "encoder.name=null", "encoder.arguments={}"]
        quarter, slowly = options.steps // 4, f"optimizer.learning_rate={options.rate}"
        runs = {
            "scratch": (options.steps, []),
            "quarter": (quarter, []),
            "continued": (quarter, [*first, slowly]),
        }
        for keep in options.keep:
            runs[f"held {keep:g}"] = (quarter, [*first, slowly, f"method.keep={keep}"])
        for weight in options.own:
            distil = {"teacher": str(learnt / "encoder"), "contrast_weight": 1.0, "image_weight": weight}
            own = [
                "method.name=distill",
                f"method.arguments={json.dumps(distil)}",
                "views.arguments.num_views=2",
                "optimizer.scaling=linear",
            ]
            runs[f"own {weight:g}"] = (quarter, [*first, slowly, *own])
        rows.append((seed, "first", None, None, scene_knn(learnt, first_train, first_test), None, 0.0))
        for name, (steps, more) in runs.items():
            folder = out / name.replace(" ", "")
            result, seconds = run(folder, shards["train"], seed, steps, *more, *overrides)
            linear, few = probes(str(folder / "encoder"), shards, seed=seed, random=False)
            moved = (result.get("moved") or {}).get("overall")
            rows.append(
                (seed, name, linear, few, scene_knn(folder, first_train, first_test), moved, seconds)
            )
    for seed, name, linear, few, knn, moved, seconds in rows:
        shares = ("" if value is None else f"{value:.1%}" for value in (linear, few, knn, moved))
        print(
            "{:>4}  {:12}  {:>12}  {:>8}  {:>11}  {:>6}  {:>6.0f}".format(seed, name, *shares, seconds),
            flush=True,
        )


def run(out: Path, data: Path, seed: int, steps: int, *more: str) -> tuple[dict[str, Any], float]:
    """Pretrains by the command; returns its result and the CPU seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command(
        "pretrain",
        CONFIG,
        f"data.url={data}",
        f"out={out}",
        f"seed={seed}",
        f"training.steps={steps}",
        "cluster.workers=0",
        "report_images=0",
        *more,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads((out / "result.json").read_text()), seconds


def scene_knn(run_folder: Path, train: Path, test: Path) -> float:
    """kNN accuracy on the first data of the encoder that a run left, in [0, 1]."""
    from cluster.training.rank_context import local_context
    from pretrain.encoders import load_encoder, read_encoder_config
    from pretrain.training.probes import LabelProbe

    url = str(run_folder / "encoder")
    config = read_encoder_config(url)
    how = {
        "size": config.input_size,
        "crop_fraction": 1.0,
        "decode_threads": 2,
        "mean": config.mean,
        "std": config.std,
    }
    probe = LabelProbe(
        str(train), str(test), image_column="image", label_column="label", neighbours=20, **how
    )
    with local_context() as context:
        return probe(load_encoder(url).eval().to(context.device), context, linear=False)["knn_accuracy"]


if __name__ == "__main__":
    main()
