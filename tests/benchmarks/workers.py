"""Fifty losses in-process, on one and two Ray workers,
and in-process from weights that differ by one rounding.

    python -m tests.benchmarks.workers SHARDS [--steps 50] [--batch 64] [--size 64] [--only-exact]

The same global batches and views everywhere; two workers only add up in another order, and in exact pieces
not even that. How far it carries is a matter of the training itself, which the last runs show: every weight
is multiplied by 1 + u, u uniform within one unit in float32's last place, in one process. Largest
differences of the losses up to a step, one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from cluster.settings import load_settings
from cluster.training.rank_context import local_context
from pretrain.papers import defaults_of
from pretrain.run import pretrain
from pretrain.settings import PretrainSettings
from pretrain.training.loop import Outcome, train

CONFIG = "configs/pretrain/small/simclr.yaml"
ROUNDING = 2.0**-23
LARS = ["optimizer.name=lars", "optimizer.learning_rate=0.3", "optimizer.weight_decay=1e-6"]
SETTINGS: dict[str, list[str]] = {
    "the paper's LARS, rate 0.3, in 4 exact pieces": [*LARS, "method.exact_pieces=4"],
    "the paper's LARS, rate 0.3": LARS,
    "the configuration's AdamW, rate 4e-3": [],
}


def main(arguments: list[str] | None = None) -> None:
    """Measures one after another and prints a line each."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.workers", description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--only-exact", action="store_true", help="no runs without exact pieces")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    marks = [step for step in (1, 12, 25, options.steps) if step <= options.steps]
    for label, overrides in list(SETTINGS.items())[: 1 if options.only_exact else None]:
        given = [
            f"data.url={options.shards.absolute()}", f"training.steps={options.steps}",
            "training.log_every_steps=1",
            f"training.batch_size_global={options.batch}", f"views.size={options.size}", "rankme_images=0",
            "data.decode_threads=1", *overrides,
        ]  # fmt: skip
        alone = in_process(given)
        print(f"{label}: {options.steps} losses from {alone[0]:.3f} to {alone[-1]:.3f}", flush=True)
        runs = [(f"{workers} Ray worker{'s'[: workers > 1]}", workers, 0) for workers in (1, 2)]
        runs += [(f"in-process, one rounding ({draw})", 0, draw) for draw in (1, 2)]
        for name, workers, draw in runs:
            trace = on_workers(given, workers) if workers else in_process(given, rounding=draw)
            apart = [abs(first - second) for first, second in zip(alone, trace, strict=True)]
            words = ", ".join(f"{max(apart[:mark]):.1e} up to step {mark}" for mark in marks)
            print(f"  {name:28} {words}", flush=True)


def in_process(given: list[str], *, rounding: int = 0) -> list[float]:
    """Losses of each step; with `rounding` as seed, from weights that are moved by one rounding."""

    def loop(module: torch.nn.Module, *arguments: Any, **more: Any) -> Outcome:
        if rounding:
            generator = torch.Generator().manual_seed(rounding)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(1 + ROUNDING * (2 * torch.rand(parameter.shape, generator=generator) - 1))
        return train(module, *arguments, **more)

    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(
            PretrainSettings, CONFIG, [*given, f"out={folder}/run"], beneath=defaults_of
        )
        with local_context() as context:
            pretrain(context, settings, loop=loop)
        return losses(Path(folder) / "run")


def on_workers(given: list[str], num_workers: int) -> list[float]:
    """Losses of each step on Ray workers, by the command."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pretrain", CONFIG, *given, f"out={folder}/run"]
        command += [f"cluster.workers={num_workers}", "cluster.cpus_per_worker=1"]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-1000:]}")
        return losses(Path(folder) / "run")


def losses(run: Path) -> list[float]:
    """Of each line of metrics.jsonl."""
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
