"""What Ray costs: seconds from the command to the first step,
and step time under Ray over step time in-process.

    python -m tests.benchmarks.ray_share SHARDS [--steps 60] [--repeats 3] [--threads 0]

The same pretraining (convattn_nano, 64 pixels, batch 64) runs in-process and under Ray with one worker with
as many threads, interleaved so that a noisy machine is noisy for both.
Step time is the median over steps 10 and later of metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH = 64


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ray_share", description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="of a run; 0: all CPUs, for which Ray's own processes compete then",
    )
    options = parser.parse_args(arguments)

    starts: dict[int, list[float]] = {0: [], 1: []}
    steps: dict[int, list[float]] = {0: [], 1: []}
    for repeat in range(options.repeats):
        for workers in (0, 1) if repeat % 2 == 0 else (1, 0):
            with tempfile.TemporaryDirectory() as folder:
                start, seconds = measured(
                    options.shards,
                    Path(folder) / "run",
                    workers=workers,
                    steps=options.steps,
                    threads=options.threads,
                )
            starts[workers].append(start)
            steps[workers] += seconds
            print(
                f"workers={workers}: first step after {start:.1f} s, median step "
                f"{statistics.median(seconds):.4f} s",
                flush=True,
            )

    in_process, under_ray = statistics.median(steps[0]), statistics.median(steps[1])
    print(f"\nseconds from the command to the first step: in-process {statistics.median(starts[0]):.1f}, "
          f"under Ray {statistics.median(starts[1]):.1f}")  # fmt: skip
    print(f"step time under Ray with one worker over step time in-process: {under_ray / in_process:.3f} "
          f"({under_ray:.4f} s over {in_process:.4f} s, medians of {len(steps[0])} steps each)")  # fmt: skip


def measured(
    shards: Path, out: Path, *, workers: int, steps: int, threads: int
) -> tuple[float, list[float]]:
    """Seconds to the first line of metrics.jsonl, and the seconds of each later step."""
    started = time.monotonic()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "pretrain", "configs/pretrain/small/simclr.yaml", f"data.url={shards}",
            f"out={out}",
            f"training.batch_size_global={BATCH}", f"training.steps={steps}", "training.log_every_steps=1",
            f"cluster.workers={workers}", f"cluster.cpus_per_worker={threads or os.cpu_count()}",
        ],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    first = time.monotonic() - started
    if process.wait() != 0:
        raise SystemExit(f"the run failed with exit code {process.returncode}")
    rates = [json.loads(line)["images_per_second"] for line in metrics.read_text().splitlines()]
    return first, [BATCH / rate for rate in rates[10:]]


if __name__ == "__main__":
    main()
