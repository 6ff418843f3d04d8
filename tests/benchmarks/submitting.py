"""Seconds from `cluster submit` to the first step of a pretraining on a running Ray head,
beside the same command typed there.

    python -m tests.benchmarks.submitting [--repeats 3] [--workers 0 1]

The head is started for this on loopback, with tokens; 60 made-up scenes, `configs/pretrain/demo.yaml`, batch
8. `accepted`: the job's id is printed; `running`: the command prints its first line; `step`:
  the first step is told.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pretrain.data.scenes.scenes import write_demo
from tests.cluster.head import Head

MARKS = {"accepted": "submitted ", "running": "pretrain: ", "step": "pretrain: step "}


def main(arguments: list[str] | None = None) -> None:
    """Starts a head, times each way of starting, and prints the seconds."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.submitting", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args(arguments)
    head = Head()
    with tempfile.TemporaryDirectory() as folder:
        write_demo(f"{folder}/data", num_images=60)
        try:
            head.start()
            for repeat in range(options.repeats):
                for workers in options.workers:
                    for way in ("typed", "submitted"):
                        out = Path(folder) / f"{way}-{workers}-{repeat}"
                        seconds = first_step(head, way, command(Path(folder) / "data", out, workers))
                        told = "  ".join(f"{name} {value:5.1f} s" for name, value in seconds.items())
                        print(f"repeat {repeat + 1}  workers {workers}  {way:9}  {told}", flush=True)
        finally:
            head.stop()


def command(data: Path, out: Path, workers: int) -> list[str]:
    """A pretraining of two steps."""
    settings = [
        "training.batch_size_global=8",
        "training.steps=2",
        "training.log_every_steps=1",
        "rankme_images=0",
    ]
    words = ["-m", "pretrain", "configs/pretrain/demo.yaml", f"data.url={data}/train", f"out={out}"]
    return [*words, f"cluster.workers={workers}", *settings]


def first_step(head: Head, way: str, words: list[str]) -> dict[str, float]:
    """Seconds until each mark is printed."""
    if way == "submitted":
        words = ["-m", "cluster", "submit", "--", "python", *words]
        environment = {**os.environ, **head.environment}
    else:
        environment = {**os.environ, **head.environment, "RAY_ADDRESS": head.gcs}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds: dict[str, float] = {}
    text = ""
    assert process.stdout is not None
    for line in process.stdout:
        text += line
        for name, mark in MARKS.items():
            if line.startswith(mark):
                seconds.setdefault(name, time.monotonic() - started)
    if process.wait() != 0:
        raise SystemExit(text)
    return seconds


if __name__ == "__main__":
    main()
