"""Is a command as fast as it was at another commit? Both in turn, by CPU time and by the clock.

    python -m tests.benchmarks.versions COMMIT [--turns 5] [--only step import ...] PHOTOS

COMMIT is checked out beside this one and runs with the same Python. PHOTOS is a folder of image files. What
is run is what stands in both:

- `step`: 60 steps of `configs/pretrain/small/simclr.yaml` less a run of 20, so that starting and ending cost
  nothing;
- `loader`: the lowest CPU time of an image that `tests.benchmarks.reading` finds;
- `import`: `python -m pretrain.data import`.

The first turn compiles and warms the caches, and is not counted. Printed is the time of each, here over
there, turn by turn: below 1 is faster than before.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

Spent = tuple[float, float]
"""Seconds of CPU, of the process and of its children, and by the clock."""
STEPS = (20, 80)


def main(arguments: list[str] | None = None) -> None:
    """Checks out, runs in turn and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.versions", description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=list(MEASURED), choices=list(MEASURED))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder) / "there"
        here = Path.cwd()
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", there, options.commit], check=True)
        try:
            work = Path(folder) / "work"
            work.mkdir()
            shards = work / "shards"
            run(here, ["-m", "pretrain.data", "import", options.photos.absolute(), shards])
            for name in options.only:
                compare(name, here, there, options, work)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", there], check=True)


def compare(name: str, here: Path, there: Path, options: argparse.Namespace, work: Path) -> None:
    """One thing, measured here and there in turn."""
    ratios: list[Spent] = []
    for turn in range(options.turns + 1):
        trees = (here, there) if turn % 2 else (there, here)
        found = {tree: MEASURED[name](tree, options.photos.absolute(), work) for tree in trees}
        if turn:
            ours, theirs = found[here], found[there]
            ratios.append((ours[0] / theirs[0], ours[1] / theirs[1]))
            print(
                f"{name:8} turn {turn}: {ours[0]:8.3f} over {theirs[0]:8.3f} of CPU ({ratios[-1][0]:.3f}), "
                f"{ours[1]:8.3f} over {theirs[1]:8.3f} by the clock ({ratios[-1][1]:.3f})",
                flush=True,
            )
    cpu, clock = (sorted(column) for column in zip(*ratios, strict=True))
    print(
        f"{name:8} here over {options.commit}: "
        f"{statistics.median(cpu):.3f} by CPU ({cpu[0]:.3f} to {cpu[-1]:.3f}), "
        f"{statistics.median(clock):.3f} by the clock ({clock[0]:.3f} to {clock[-1]:.3f})",
        flush=True,
    )


def run(tree: Path, command: list[str | Path]) -> tuple[Spent, str]:
    """What Python spends on a command in `tree`, and what it prints."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tree,
        env=environment(tree),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{tree}: {' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (cpu, time.monotonic() - began), done.stdout


def environment(tree: Path) -> dict[str, str]:
    """That of this process, with the packages of `tree`."""
    return {**os.environ, "PYTHONPATH": str(tree)}


def of_import(tree: Path, photos: Path, work: Path) -> Spent:
    """Seconds of an import."""
    shutil.rmtree(work / "imported", ignore_errors=True)
    return run(tree, ["-m", "pretrain.data", "import", photos, work / "imported"])[0]


def of_step(tree: Path, photos: Path, work: Path) -> Spent:
    """Seconds a step."""
    spent = []
    for steps in STEPS:
        shutil.rmtree(work / "run", ignore_errors=True)
        given = [
            f"data.url={work / 'shards'}", f"out={work / 'run'}", f"training.steps={steps}",
            "cluster.workers=0", "rankme_images=0", "report_images=0", "data.keep=none",
        ]  # fmt: skip
        spent.append(run(tree, ["-m", "pretrain", "configs/pretrain/small/simclr.yaml", *given])[0])
    (few_cpu, few), (many_cpu, many) = spent
    return (many_cpu - few_cpu) / (STEPS[1] - STEPS[0]), (many - few) / (STEPS[1] - STEPS[0])


def of_loader(tree: Path, photos: Path, work: Path) -> Spent:
    """Milliseconds an image, the least of the repeats."""
    text = run(tree, ["-m", "tests.benchmarks.reading", work / "shards", "--repeats", "2"])[1]
    found = re.findall(r"^read and decode: (\d+) images/s, ([\d.]+) ms of CPU", text, re.MULTILINE)
    return min(float(cpu) for _, cpu in found), 1000 / max(float(rate) for rate, _ in found)


MEASURED: dict[str, Callable[[Path, Path, Path], Spent]] = {
    "step": of_step,
    "loader": of_loader,
    "import": of_import,
}


if __name__ == "__main__":
    main()
