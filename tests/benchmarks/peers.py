"""The loader beside its peers: two random crops of 224 pixels of each photo, by one thread on one core;
from disk and from S3.

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install nvidia-dali-cuda120 litdata polars pyarrow torch torchvision s3fs boto3 psutil
    python -m tests.benchmarks.peers PHOTOS --peer-python /tmp/peers/bin/python [--copies 4] [--delay 0.05]
        [--batches 40]
        [--repeats 3] [--rows ours_disk dali_once ...]

PHOTOS holds `train` with a folder a class. Contestants take turns, each in a process of its own on one core;
the store (moto's server and the proxy that adds the delay to each request) has the other, where there are
two. CPU time is that of all threads and children; the first batches of a turn are left out.

- `ours`: `Loader` and `RandomViews` from Parquet, what the host does for a GPU (uint8; mirroring included);
- `dali_once`, `dali_twice`: DALI's CPU operators on the files, the image decoded once, or each crop alone;
- `litdata`: LitData's ParquetLoader on the same shards, in the store read for the first time; torchvision
  decodes and crops in the process itself, for a worker process would share the core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.streaming import store

PROGRAM = str(Path(__file__).with_name("peer_loops.py"))
ROWS = {  # what it is called here -> the loop and its source
    "ours_disk": ("ours", "shards"),
    "dali_once": ("dali_once", "files"),
    "dali_twice": ("dali_twice", "files"),
    "litdata_disk": ("litdata", "shards"),
    "ours_s3": ("ours", "s3"),
    "litdata_s3": ("litdata", "s3"),
}
GOALS = (("ours_disk", ("dali_once", "dali_twice"), 3.0), ("ours_s3", ("litdata_s3",), 1.2))
PEERS = ("nvidia-dali-cuda120", "litdata", "torchvision")


def main(arguments: list[str] | None = None) -> None:
    """Measures in turns and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--peer-python", required=True, help="of the environment that has the peers")
    parser.add_argument("--copies", type=int, default=4, help="copies of each shard that the data set holds")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds added to each request")
    parser.add_argument("--batches", type=int, default=40, help="of 64 images, timed in each turn")
    parser.add_argument("--warm-up", type=int, default=12, help="batches left out of each turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    options = parser.parse_args(arguments)
    print(f"torch {version('torch')}; peers: {versions(options.peer_python)}", flush=True)

    cores = sorted(os.sched_getaffinity(0))
    of_contestants, of_store = cores[-1:], cores[:1]
    with tempfile.TemporaryDirectory() as folder, store(of_store, options.delay) as url:
        from cluster import storage
        from pretrain.data.packing.importing import ImportOptions, import_images

        import_images(str(options.photos / "train"), f"{folder}/once", ImportOptions(), show_progress=False)
        (Path(folder) / "shards").mkdir()
        for path in sorted(Path(folder, "once").glob("*.parquet")):
            for copy in range(options.copies):
                (Path(folder) / "shards" / f"{copy}-{path.name}").symlink_to(path)
                storage.upload(path, f"{url}/{copy}-{path.name}")
        sources = {"files": str(options.photos / "train"), "shards": f"{folder}/shards", "s3": url}
        found: dict[str, list[dict[str, float]]] = {row: [] for row in options.rows}
        for repeat in range(options.repeats):
            for row in options.rows if repeat % 2 == 0 else options.rows[::-1]:
                loop, source = ROWS[row]
                with tempfile.TemporaryDirectory() as cache:
                    one = turn(loop, sources[source], options, of_contestants, cache)
                if one is not None:
                    found[row].append(one)
                    print(
                        f"{row:18} {one['rate']:7.0f} images/s {one['cpu_ms']:7.3f} ms of CPU an image",
                        flush=True,
                    )
    summary({row: turns for row, turns in found.items() if turns})


def turn(
    loop: str, source: str, options: argparse.Namespace, cores: list[int], cache: str
) -> dict[str, float] | None:
    """Rate and CPU of one turn; None, and a line, when it failed."""
    python = sys.executable if loop == "ours" else options.peer_python
    command = [
        python, PROGRAM, loop, source, "--batches", str(options.batches), "--warm-up", str(options.warm_up),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PEER_CACHE": cache}
    if loop == "ours":
        environment["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if done.returncode:
        print(f"{loop} from {source} failed: {done.stderr.strip()[-600:]}")
        return None
    told: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def summary(found: dict[str, list[dict[str, float]]]) -> None:
    """Medians, and how many times as fast as the best of its peers ours is."""
    print()
    rate = {row: statistics.median(turn["rate"] for turn in turns) for row, turns in found.items()}
    cpu = {row: statistics.median(turn["cpu_ms"] for turn in turns) for row, turns in found.items()}
    for row, turns in found.items():
        rates = [turn["rate"] for turn in turns]
        print(f"{row:18} {rate[row]:7.0f} images/s ({min(rates):.0f} to {max(rates):.0f}) {cpu[row]:7.3f} "
              f"ms of CPU an image "
              f"(medians of {len(turns)})")  # fmt: skip
    for ours, peers, goal in GOALS:
        there = [peer for peer in peers if peer in found]
        if ours in found and there:
            fastest = max(there, key=lambda peer: rate[peer])
            leanest = min(there, key=lambda peer: cpu[peer])
            print(f"{ours}: {rate[ours] / rate[fastest]:.2f} times {fastest} by the clock, "
                  f"{cpu[leanest] / cpu[ours]:.2f} "
                  f"times {leanest} in CPU time (goal {goal})")  # fmt: skip


def versions(python: str) -> str:
    """Of the peers, as their environment has them."""
    asked = (
        "import importlib.metadata as m, platform\n"
        "def of(name):\n"
        "    try: return m.version(name)\n    except m.PackageNotFoundError: return 'not installed'\n"
        f"print('Python ' + platform.python_version(), *(n + ' ' + of(n) for n in {PEERS!r}), sep=', ')"
    )
    return subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
