"""What report.html costs: seconds, CPU seconds, peak memory and bytes of the page of a
pretraining run on the demo's scenes.

    python -m tests.benchmarks.reports [--images 400] [--steps 40] [--repeats 3]

A run of `configs/pretrain/demo.yaml` is made first;
each report is written by a process of its own, as the command does it.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pretrain.data.scenes.scenes import write_demo

SCENES = 1000


def main(arguments: list[str] | None = None) -> None:
    """Trains for some steps, writes reports and prints what they cost."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.reports", description=__doc__)
    parser.add_argument("--images", type=int, default=400, help="images that a report looks at, at most")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        write_demo(f"{folder}/data", num_images=SCENES)
        out = Path(folder) / "run"
        settings = [
            f"data.url={folder}/data/train", f"knn.train_url={folder}/data/train",
            f"knn.test_url={folder}/data/validation",
            f"training.steps={options.steps}", "cluster.workers=0", "report_images=0", f"out={out}",
        ]  # fmt: skip
        _run("pretrain", "configs/pretrain/demo.yaml", *settings)
        for images in (0, options.images):
            for repeat in range(options.repeats):
                started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
                _run("pretrain", "report", str(out), "--images", str(images))
                seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
                cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                size = (out / "report.html").stat().st_size
                print(
                    f"{images:4} images, repeat {repeat + 1}: {seconds:5.1f} s, {cpu:5.1f} s of CPU, "
                    f"{size / 1e3:,.0f} kB",
                    flush=True,
                )
        print(f"peak memory of a command: {after.ru_maxrss / 2**20:.2f} GiB at most (training among them)")


def _run(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    )


if __name__ == "__main__":
    main()
