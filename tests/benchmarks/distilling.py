"""What a teacher's knowledge is worth: distillation beside SimCLR at equal CPU time,
the teacher's pass counted in.

    python -m tests.benchmarks.distilling PHOTOS [--seeds 0 1 2] [--rows simclr distill ...]
        [--cpu-seconds 500]
        [--out runs/distilling] [--finetune] [--step] [key=value ...]

PHOTOS holds `train`, `validation` and `test`, each with a folder a class. Each row pretrains `convattn_nano`
at 64 pixels on the train split without labels: `simclr` by `configs/pretrain/small/simclr.yaml`, the others
by `small/distill.yaml` from EfficientNet-Lite0 with ImageNet's weights (extra `teacher`). How many steps a
row makes is what its time allows: the seconds of CPU of a step and of start-up are taken from two short
runs, those of `embed` from embedding, which is part of every row with stored features. Both probes are those
of `tests.benchmarks.clothing`. `--finetune` also fine-tunes in full with a tenth of the labels, as
`tests.benchmarks.finetuning` does. `--step` compares the CPU time of a step with stored features with that
of SimCLR over as many views. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from tests.benchmarks.clothing import SPLITS, best_probe, command, packed, probes
from tests.benchmarks.cpu_time import cpu_seconds

TEACHER = "package:efficientnet_lite0"
SIMCLR, DISTILL = "configs/pretrain/small/simclr.yaml", "configs/pretrain/small/distill.yaml"
TWO_VIEWS = ("views.arguments.num_views=2",)
POOLED = ("method.arguments.map_weight=0",)
ROWS: dict[str, tuple[str, ...]] = {
    "simclr": (),
    "distill": (),
    "pooled": POOLED,
    "similarity": (*POOLED, "method.arguments.loss=similarity"),
    "smooth_l1": (*POOLED, "method.arguments.loss=smooth_l1"),
    "whitened": (*POOLED, "method.arguments.whitening=0.5"),
    "batch": (*POOLED, "method.arguments.batch_weight=0.2"),
    "two_views": (*POOLED, *TWO_VIEWS),
    "contrast": (*POOLED, *TWO_VIEWS, "method.arguments.contrast_weight=0.2"),
    "live": (*POOLED, f"method.arguments.teacher={TEACHER}"),
}
SHORT, LONG = 20, 80  # steps of the two runs that tell what a step costs
STEP_LONG = 200  # the same of --step
MAP_CELLS = 7


def main(arguments: list[str] | None = None) -> None:
    """Packs, embeds, pretrains, probes and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.distilling", description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--cpu-seconds", type=float, default=500.0)
    parser.add_argument("--out", type=Path, default=Path("runs/distilling"))
    parser.add_argument("--finetune", action="store_true")
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--turns", type=int, default=5, help="of --step")
    options, overrides = parser.parse_known_args(arguments)
    out: Path = options.out
    shards = packed(options.photos, out / "data")
    if options.step:
        show_step(out, shards, options.turns)
        return
    for seed in options.seeds:
        for row in options.rows:
            run(row, seed, options.cpu_seconds, out, shards, overrides)
            if options.finetune:
                finetune(row, seed, out, shards)
    show(out)


def embedded(out: Path, shards: dict[str, Path], *, maps: bool) -> tuple[Path, float]:
    """The folder of the teacher's features of the train split, and the seconds of CPU that they took."""
    folder = out / ("features-maps" if maps else "features")
    told = folder.with_suffix(".json")
    if not told.exists():
        began = cpu_seconds()
        how = ("--maps", str(MAP_CELLS)) if maps else ("--whole-image",)
        command("pretrain", "embed", TEACHER, str(shards["train"]), str(folder), *how)
        told.write_text(json.dumps({"cpu_seconds": cpu_seconds() - began}))
    return folder, float(json.loads(told.read_text())["cpu_seconds"])


def settings_of(row: str, out: Path, shards: dict[str, Path]) -> tuple[list[str], float]:
    """The command line of a row without out and steps, and the seconds of CPU that were spent before."""
    config = SIMCLR if row == "simclr" else DISTILL
    settings = [config, f"data.url={shards['train']}", "cluster.workers=0", "report_images=0", *ROWS[row]]
    if row in ("simclr", "live"):
        return settings, 0.0
    features, spent = embedded(out, shards, maps=row == "distill")
    return [*settings, f"method.arguments.features={features}"], spent


def cost_of(row: str, out: Path, shards: dict[str, Path], overrides: list[str]) -> tuple[float, float]:
    """Seconds of CPU of a step, and of everything else in the command."""
    told = out / f"cost-{row}.json"
    if not told.exists():
        settings, _ = settings_of(row, out, shards)
        # the views' loops are compiled by the first run on a machine, which is not part of the training
        command("pretrain", *settings, f"out={out / f'cost-{row}-first'}", "training.steps=2", *overrides)
        spent = []
        for steps in (SHORT, LONG):
            began = cpu_seconds()
            command(
                "pretrain",
                *settings,
                f"out={out / f'cost-{row}-{steps}'}",
                f"training.steps={steps}",
                *overrides,
            )
            spent.append(cpu_seconds() - began)
        step = (spent[1] - spent[0]) / (LONG - SHORT)
        told.write_text(json.dumps({"step": step, "else": max(0.0, spent[0] - SHORT * step)}))
    cost = json.loads(told.read_text())
    return float(cost["step"]), float(cost["else"])


def run(
    row: str, seed: int, budget: float, out: Path, shards: dict[str, Path], overrides: list[str]
) -> None:
    """One pretraining within its time, and its probes, in OUT/ROW-SEED/scores.json."""
    folder = out / f"{row}-{seed}"
    if (folder / "scores.json").exists():
        return
    settings, before = settings_of(row, out, shards)
    step, beside = cost_of(row, out, shards, overrides)
    steps = max(1, round((budget - before - beside) / step))
    began = cpu_seconds()
    command("pretrain", *settings, f"out={folder}", f"seed={seed}", f"training.steps={steps}", *overrides)
    spent = before + cpu_seconds() - began
    linear, few = probes(str(folder / "encoder"), shards, seed=seed, random=False)
    scores = {"linear": linear, "few": few, "cpu_seconds": spent, "steps": steps, "embedding": before}
    if row == "simclr":
        scores["random"] = probes(str(folder / "encoder"), shards, seed=seed, random=True)
    (folder / "scores.json").write_text(json.dumps(scores))
    print(
        f"{row} {seed}: linear {linear:.1%}, 10-shot {few:.1%}, {steps} steps, {spent:.0f} s of CPU",
        flush=True,
    )


def finetune(row: str, seed: int, out: Path, shards: dict[str, Path]) -> None:
    """Full fine-tuning with a tenth of the labels;
    the accuracy on the test split goes into finetuned.json.
    """
    folder = out / f"{row}-{seed}"
    if (folder / "finetuned.json").exists():
        return
    from tests.benchmarks.finetuning import run as run_finetuning

    urls = {split: str(url) for split, url in shards.items()}
    run_finetuning("full", 0.1, seed, str(folder / "encoder"), urls, folder, [])
    told = json.loads((folder / "runs" / f"full-0.1-{seed}" / "test.json").read_text())
    (folder / "finetuned.json").write_text(json.dumps(told["metrics"]))


def teacher_scores(out: Path, shards: dict[str, Path]) -> tuple[float, float]:
    """Linear probe and 10-shot accuracy of the teacher's own features of whole images."""
    import numpy as np
    import pyarrow.parquet as pq

    features, ids = {}, {}
    for split, folder in shards.items():
        there = out / "teacher" / split
        if not (there / "features.json").exists():
            command("pretrain", "embed", TEACHER, str(folder), str(there), "--whole-image")
        table = pq.read_table(there, columns=["features", "label"])
        features[split] = np.stack(table["features"].to_numpy()).astype(np.float32)
        ids[split] = table["label"].to_pylist()
    classes = sorted(set(ids["train"]))
    numbers = {split: np.array([classes.index(label) for label in labels]) for split, labels in ids.items()}
    mean, deviation = features["train"].mean(0), features["train"].std(0) + 1e-6
    scaled = {split: (values - mean) / deviation for split, values in features.items()}
    generator = np.random.default_rng(0)
    chosen = [
        np.concatenate(
            [generator.choice(np.flatnonzero(numbers["train"] == c), 10, replace=False) for c in range(10)]
        )
        for _ in range(10)
    ]
    few = statistics.mean(best_probe(scaled, numbers, rows) for rows in chosen)
    return best_probe(scaled, numbers, np.arange(len(numbers["train"]))), few


def show(out: Path) -> None:
    """The table of what is finished."""
    print(
        "\n"
        f"{'row':11} {'seeds':>5}  {'linear probe':24} {'10-shot':24} {'10 % of labels':24} {'steps':>6} "
        f"{'CPU':>6}"
    )
    for row in ROWS:
        files = sorted(out.glob(f"{row}-*/scores.json"))
        if not files:
            continue
        scores: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files]
        tuned = [json.loads(f.read_text())["accuracy"] for f in sorted(out.glob(f"{row}-*/finetuned.json"))]
        columns = [[score[name] for score in scores] for name in ("linear", "few")]
        cpu = statistics.mean(score["cpu_seconds"] for score in scores)
        print(
            f"{row:11} {len(files):>5}  {_each(columns[0]):24} {_each(columns[1]):24} {_each(tuned):24} "
            f"{scores[0]['steps']:>6} {cpu:>4.0f} s"
        )
        if "random" in scores[0]:
            print(f"{'random':11} {len(files):>5}  {_each([s['random'][0] for s in scores]):24} ", end="")
            print(_each([s["random"][1] for s in scores]))
    if (out / "teacher").exists():
        shards = {split: out / "data" / split for split in SPLITS}
        print(f"{'teacher':11} {'':>5}  {'{:.1%}':24} {'{:.1%}':24}".format(*teacher_scores(out, shards)))


def _each(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.1%} ({', '.join(f'{100 * value:.1f}' for value in values)})"


def show_step(out: Path, shards: dict[str, Path], turns: int) -> None:
    """CPU time of a step with stored features over that of SimCLR's with as many views, turn by turn."""
    features, _ = embedded(out, shards, maps=False)
    both = [
        [SIMCLR],
        [DISTILL, f"method.arguments.features={features}", *POOLED, *TWO_VIEWS],
    ]
    named = dict(zip(("simclr", "distill"), both, strict=True))

    def run_of(name: str, steps: int, turn: str) -> tuple[float, float]:
        """CPU seconds of a run, and seconds of a step by the clock without
        start-up and what follows the last step.
        """
        began, folder = cpu_seconds(), out / f"step-{name}-{steps}-{turn}"
        shutil.rmtree(folder, ignore_errors=True)
        given = [f"data.url={shards['train']}", f"out={folder}", f"training.steps={steps}"]
        command("pretrain", *named[name], *given, "cluster.workers=0", "report_images=0")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        first, last = lines[0], lines[-2 if len(lines) > 2 else -1]
        clock = (last["seconds"] - first["seconds"]) / max(1, last["step"] - first["step"])
        return cpu_seconds() - began, clock

    for name in named:  # the views' loops are compiled by the first run on a machine
        run_of(name, 2, "first")
    ratios: list[tuple[float, float]] = []
    for turn in range(turns):
        costs = []
        for name in named if turn % 2 == 0 else reversed(named):
            short, _ = run_of(name, SHORT, str(turn))
            long, clock = run_of(name, STEP_LONG, str(turn))
            costs.append((name, (long - short) / (STEP_LONG - SHORT), clock))
        (_, *simclr), (_, *stored) = sorted(costs, key=lambda one: one[0] != "simclr")
        ratios.append((stored[0] / simclr[0], stored[1] / simclr[1]))
        print(
            f"turn {turn}: SimCLR {1000 * simclr[0]:.0f} ms of CPU and {1000 * simclr[1]:.0f} ms by the "
            f"clock a step, stored {1000 * stored[0]:.0f} and {1000 * stored[1]:.0f} ms",
            flush=True,
        )
    for what, found in zip(("CPU", "the clock"), zip(*ratios, strict=True), strict=True):
        spread = f"{min(found):.3f} to {max(found):.3f}"
        print(
            f"stored features over SimCLR by {what}: median {statistics.median(found):.3f} of {turns} "
            f"turns, {spread}"
        )


if __name__ == "__main__":
    main()
