"""Does a long run leak? Memory, file handles and threads of every process of a run of 20,000 steps.

    python -m tests.benchmarks.soak [--steps 20000] [--first 1000] [--workers 1] [--out runs/soak]

Pretrains `convattn_nano` on images of 32 pixels in batches of 8, with logs, checkpoints and RankMe on the
way, and reads what each process of the command takes when `--first` steps are done, at every tenth of the
rest, and at the end: anonymous memory (in MiB; not the code that it may share with others), open file
handles, threads. Printed is each process that lived from the first reading to the last. Goals: memory at the
end at most 1.03 of that at the first reading, handles and threads the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from tests.pretrain.shards import photo, write_shards

Reading = dict[str, tuple[float, int, int]]
"""Of each process, by its name and number, MiB of its own, file handles and threads."""


def main(arguments: list[str] | None = None) -> None:
    """Runs, reads and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=1_000, help="steps before the first reading")
    parser.add_argument("--workers", type=int, default=1, help="Ray workers; 0 runs without Ray")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    options = parser.parse_args(arguments)
    shutil.rmtree(options.out, ignore_errors=True)
    write_shards(options.out / "shards", [photo(number) for number in range(options.images)])
    readings = run(options)
    first, *_, last = readings.values()
    print(
        f"{'process':32} {'MiB at ' + str(next(iter(readings))):>14} {'at the end':>11} {'ratio':>6}  "
        "handles     threads"
    )
    for name in [name for name in first if name in last]:
        (was, handles, threads), (now, more_handles, more_threads) = first[name], last[name]
        counts = f"{handles:3} -> {more_handles:3}  {threads:3} -> {more_threads:3}"
        print(f"{name:32} {was:14.1f} {now:11.1f} {now / was:6.3f}  {counts}")
        memory = [reading[name][0] for reading in readings.values() if name in reading]
        print(f"{'':32} {' '.join(f'{one:.0f}' for one in memory)}")
    total = {step: sum(memory for memory, *_ in reading.values()) for step, reading in readings.items()}
    print("all processes, MiB: " + ", ".join(f"{step}: {memory:.0f}" for step, memory in total.items()))


def run(options: argparse.Namespace) -> dict[int, Reading]:
    """What the processes took, by the step."""
    out = options.out / "run"
    settings = {
        "data.url": options.out / "shards", "out": out, "views.size": 32, "encoder.arguments.stem_stride": 4,
        "training.batch_size_global": 8, "training.steps": options.steps, "training.log_every_steps": 20,
        "training.checkpoint_every_steps": 500, "cluster.workers": options.workers, "report_images": 0,
        "knn.every_epochs": 10, "rankme_images": 64,
    }  # fmt: skip
    words = [f"{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "pretrain", "configs/pretrain/small/simclr.yaml", *words]
    began = time.monotonic()
    process = subprocess.Popen(command)
    wanted = np.linspace(options.first, options.steps, 10).astype(int).tolist()
    wanted[-1] = options.steps - options.steps // 200  # before its processes end
    readings: dict[int, Reading] = {}
    while process.poll() is None and wanted:
        step = step_of(out / "metrics.jsonl")
        if step >= wanted[0]:
            readings[step] = reading_of(process.pid)
            wanted = [one for one in wanted if one > step]
        time.sleep(0.5)
    if process.wait() != 0 or wanted:
        raise SystemExit(f"the run ended with {process.returncode}, with {len(wanted)} readings missing")
    print(f"{options.steps:,} steps in {time.monotonic() - began:.0f} s")
    return readings


def step_of(metrics: Path) -> int:
    """The last step that a run logged; 0 before the first."""
    with suppress(OSError, ValueError, IndexError), open(metrics, "rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        return int(json.loads(file.read().splitlines()[-1])["step"])
    return 0


def reading_of(pid: int) -> Reading:
    """Of a process and all below it."""
    root = psutil.Process(pid)
    reading: Reading = {}
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.Error):
            name = Path((process.cmdline() or [process.name()])[0]).name[:22]
            memory = anonymous_mib(process.pid)
            reading[f"{name} {process.pid}"] = memory, process.num_fds(), process.num_threads()
    return reading


def anonymous_mib(pid: int) -> float:
    """Resident memory of a process that is backed by no file. What it has of libraries alone is none of it,
    for that changes as other programs come and go.
    """
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024
    raise psutil.NoSuchProcess(pid)


if __name__ == "__main__":
    main()
