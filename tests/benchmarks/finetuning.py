"""Classification of real photos from an encoder and from random weights:
linear, full and lora, with few and all labels.

    python -m tests.benchmarks.finetuning PHOTOS [--encoder URL] [--seeds 0 1 2] [--out FOLDER]
        [--minutes N] [key=value ...]

PHOTOS holds `train`, `validation` and `test`, each with a folder a class. Without --encoder one is
pretrained on the train split without labels, by `configs/pretrain/small/simclr.yaml`. Every run is one of
`python -m finetune` with a configuration of `configs/finetune/small`; validation says which evaluation's
model is kept, accuracy is that of the test split, by which nothing was chosen. What is finished is not run
again, so with --minutes the table can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.clothing import CONFIG, command, packed

# name -> configuration and mode; random weights are trained as `full` is
ROWS = {"linear": "linear", "full": "full", "lora": "lora", "random": "full"}
# share of the labels -> epochs: few labels need some steps to be learnt from,
# and all are to be shown in a minute or two
EPOCHS = {0.1: 40, 1.0: 10}


def main(arguments: list[str] | None = None) -> None:
    """Packs, pretrains if need be, fine-tunes and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.finetuning", description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--encoder", help="encoder folder; by default one is pretrained in OUT/encoder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=list(EPOCHS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("runs/finetuning"))
    parser.add_argument("--minutes", type=float, default=1e9, help="starts no further run after so long")
    options, overrides = parser.parse_known_args(arguments)
    began = time.monotonic()
    shards = {split: str(folder) for split, folder in packed(options.photos, options.out / "data").items()}
    encoder = options.encoder or str(options.out / "encoder" / "encoder")
    if not Path(encoder, "config.json").exists() and options.encoder is None:
        out = f"out={options.out / 'encoder'}"
        command("pretrain", CONFIG, f"data.url={shards['train']}", out, "seed=0", "cluster.workers=0")

    for seed in options.seeds:
        for share in options.shares:
            for row in options.rows:
                if time.monotonic() - began < 60 * options.minutes:
                    run(row, share, seed, encoder, shards, options.out, overrides)
    show(options.out)


def run(
    row: str, share: float, seed: int, encoder: str, shards: dict[str, str], root: Path, overrides: list[str]
) -> None:
    """One run and its accuracy on the test split, in OUT/runs/.../test.json."""
    from cluster.errors import run_command
    from finetune.__main__ import main as finetune
    from finetune.evaluating import main as evaluate

    out = root / "runs" / f"{row}-{share:g}-{seed}"
    if (out / "test.json").exists():
        return
    settings = [
        f"configs/finetune/small/{ROWS[row]}.yaml",
        f"encoder={'random:' * (row == 'random')}{encoder}",
        f"data.url={shards['train']}",
        f"validation_url={shards['validation']}",
        f"out={out}",
        f"seed={seed}",
        f"label_fraction={share:g}",
        f"training.epochs={EPOCHS[share]}",
        f"training.warmup_epochs={EPOCHS[share] / 10:g}",
        f"evaluate_every_epochs={EPOCHS[share] / 10:g}",
        "compare=[]",
        "cluster.workers=0",
    ]
    print(f"-- {row}, {share:.0%} of the labels, seed {seed}", flush=True)
    if run_command(lambda: finetune([*settings, *overrides])):
        raise SystemExit(f"{row} failed")
    evaluate([str(out / "model"), shards["test"], "--json", str(out / "test.json")])


def show(root: Path) -> None:
    """The table of what is finished."""
    cells: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for file in sorted((root / "runs").glob("*/test.json")):
        row, share, _ = file.parent.name.rsplit("-", 2)
        result, config = (
            json.loads((file.parent / name).read_text()) for name in ("result.json", "model/config.json")
        )
        numbers = json.loads(file.read_text())["metrics"]
        size = (file.parent / "model" / "model.safetensors").stat().st_size
        cells.setdefault((float(share), row), []).append(
            {"accuracy": numbers["accuracy"], "macro_f1": numbers["macro_f1"], "seconds": result["seconds"]}
            | {"bytes": size, "parameters": parameters(file.parent / "model"), "mode": config["mode"]}
        )
    print(
        "\n"
        f"{'labels':>6}  {'':8}  {'accuracy of each seed':26}  {'mean':>6}  {'macro F1':>8}  {'saved':>9}  "
        f"{'training':>8}"
    )
    for share in EPOCHS:
        for row in ROWS:
            if runs := cells.get((share, row)):
                means = {
                    key: statistics.mean(run[key] for run in runs)
                    for key in ("accuracy", "macro_f1", "seconds")
                }
                each = "  ".join(f"{run['accuracy']:.1%}" for run in runs)
                print(
                    f"{share:>6.0%}  {row:8}  {each:26}  {means['accuracy']:>6.1%}  "
                    f"{means['macro_f1']:>8.1%}  {runs[0]['parameters']:>9,}  {means['seconds']:>6.0f} s"
                )


def parameters(model: Path) -> int:
    """Numbers in a model folder's tensors."""
    import safetensors

    with safetensors.safe_open(model / "model.safetensors", "np") as file:
        return sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118 - no mapping


if __name__ == "__main__":
    main()
