"""Is LARS right for a network with layer norm? LARS beside AdamW at equal steps,
by linear probe on real photos.

    python -m tests.benchmarks.choosing_optimizers PHOTOS [--methods byol barlow_twins] [--seeds 0 1]
        [--steps 400]
        [--rows NAME ...]

PHOTOS holds `train`, `validation` and `test`, each with a folder a class, packed as
`tests.benchmarks.clothing` does. Each run is `python -m pretrain configs/pretrain/small/METHOD.yaml`
(`convattn_nano`, a stem of stride 4, 64 pixels, batches of 64), on one core, and differs from the others of
its method and seed in the optimizer alone:

- `adamw`: as the configuration has it, 4e-3 for 256 images and a decay of 0.05;
- `adamw_gentle`: 5e-4 for 256 images, as papers on transformers have it;
- `lars`: learning rate, decay and end of the method's paper (`pretrain/papers.py`), scaled linearly to the
  batch;
- `lars_x8`, `lars_x32`: 8 and 32 times that rate, for a rate that is scaled linearly from 4096 images to 64
  is small. For BYOL and SimCLR the former is what scaling by the square root gives.

Probes are those of `tests.benchmarks.clothing`; the loss is the mean of the last lines of the log, of what
is trained on, so it says how far an optimizer got and not what that is worth.
Runs that are finished in `--out` are not repeated; one that stopped by itself has no number (nan).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
from pathlib import Path

from cluster.errors import EXIT_STOPPED
from pretrain.papers import PAPERS
from tests.benchmarks.clothing import command, packed, probes

LARS_FACTORS = {"lars": 1.0, "lars_x8": 8.0, "lars_x32": 32.0}
ROWS = ("adamw", "lars", "lars_x8", "lars_x32", "adamw_gentle")
RANDOM = "random weights"
LAST_LINES = 3  # of ten steps each


def main(arguments: list[str] | None = None) -> None:
    """Trains, probes and prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.choosing_optimizers", description=__doc__
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--methods", nargs="+", default=["byol", "barlow_twins"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--core", type=int, help="that all runs are bound to; by default the last one")
    parser.add_argument("--out", type=Path, default=Path("runs/choosing-optimizers"))
    options = parser.parse_args(arguments)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [max(cores) if options.core is None else options.core])
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        compare(options)
    finally:
        os.sched_setaffinity(0, cores)


def compare(options: argparse.Namespace) -> None:
    """All runs, seed by seed, so that what is cut short has each row once."""
    shards = packed(options.photos, options.out / "data")
    scores: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    print(f"{'method':14} {'optimizer':14} {'seed':>4} {'CPU':>6} {'loss':>7} {'linear':>7} {'10-shot':>8}")
    for seed in options.seeds:
        for row in (*options.rows, RANDOM):
            for method in options.methods:
                if row == RANDOM and method != options.methods[0]:
                    continue  # the same for all methods
                told = measured(method, row, seed, options, shards)
                whose = "" if row == RANDOM else method
                scores.setdefault((whose, row), []).append((told["loss"], told["linear"], told["few"]))
                print(f"{whose:14} {row:14} {seed:>4} {told['cpu']:>4.0f} s {told['loss']:>7.3f} "
                      f"{told['linear']:>7.1%} {told['few']:>8.1%}", flush=True)  # fmt: skip
    for (method, row), pairs in scores.items():
        loss, linear, few = (statistics.mean(column) for column in zip(*pairs, strict=True))
        print(f"{method:14} {row:14} mean {'':>6} {loss:>7.3f} {linear:>7.1%} {few:>8.1%}")


def measured(
    method: str, row: str, seed: int, options: argparse.Namespace, shards: dict[str, Path]
) -> dict[str, float]:
    """Accuracies of both probes on the test split in [0, 1], seconds of CPU that the run took,
    and its last loss.
    """
    out = options.out / f"{method}-{row.replace(' ', '-')}-{seed}"
    file = out.with_suffix(".json")
    if not file.exists():
        before = _cpu_of_children()
        if row == RANDOM:
            of_encoder = options.out / f"{method}-{options.rows[0]}-{seed}"
        else:
            of_encoder = out
            try:
                command(
                    "pretrain", f"configs/pretrain/small/{method}.yaml", f"data.url={shards['train']}",
                    f"out={out}", f"seed={seed}", f"training.steps={options.steps}", "cluster.workers=0",
                    "rankme_images=0", "report_images=0", *optimizer_of(method, row),
                )  # fmt: skip
            except subprocess.CalledProcessError as error:
                if error.returncode != EXIT_STOPPED:
                    raise
        cpu = _cpu_of_children() - before
        linear = few = math.nan  # of a run that stopped by itself, which leaves no encoder
        if (of_encoder / "encoder").is_dir():
            linear, few = probes(str(of_encoder / "encoder"), shards, seed=seed, random=row == RANDOM)
        file.write_text(json.dumps({"linear": linear, "few": few, "cpu": cpu}))
    log = out / "metrics.jsonl"  # random weights have none
    lines = log.read_text().splitlines()[-LAST_LINES:] if log.exists() else []
    loss = statistics.mean(json.loads(line)["loss"] for line in lines) if lines else float("nan")
    return {**json.loads(file.read_text()), "loss": loss}


def optimizer_of(method: str, row: str) -> list[str]:
    """The settings of a row's optimizer."""
    if row == "adamw":
        return []
    if row == "adamw_gentle":
        return ["optimizer.learning_rate=5e-4"]
    paper = PAPERS[method]["optimizer"]
    return [
        "optimizer.name=lars", f"optimizer.learning_rate={paper['learning_rate'] * LARS_FACTORS[row]}",
        f"optimizer.weight_decay={paper['weight_decay']}",
        f"optimizer.final_fraction={paper.get('final_fraction', 0.0)}",
    ]  # fmt: skip


def _cpu_of_children() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


if __name__ == "__main__":
    main()
