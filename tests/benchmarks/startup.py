"""How long it takes until a large data set is known:
footers of 2,000 files with 1,000,000 rows, cold and cached.

    python -m tests.benchmarks.startup [--files 2000] [--rows 500] [--repeats 3] [--links]
        [--delay 0.05 [--threads 32 64]]

The files hold tiny images and are made on the spot; with `--links` they are one file under many names, which
makes the footers of 100 million rows in seconds (`--files 20000 --rows 5000 --links`). Cold: no manifest is
remembered; cached: the listing is compared and the footers are not read. Each time is that of
`load_manifest` in a fresh process, imports left out, and the page cache warm;
the memory is the process's peak over what it had before.

With `--delay` the same files are read from a store as well (`tests.benchmarks.quick_store`), which lets each
request wait for so many seconds, in turns with the disk and with each number of threads. The floor is what
the requests alone would take, delay x requests / threads; reading from the disk shows what parsing alone
takes. The ratio is the time over the larger of both.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.data.reading.group_table import REMOTE_THREADS
from tests.benchmarks.quick_store import Store, quick_store

PROGRAM = """
import sys, time
from cluster.training.memory import peak_bytes
from pretrain.data.reading import group_table
from pretrain.data.reading.manifest import load_manifest
group_table.REMOTE_THREADS = int(sys.argv[3])
if sys.argv[1].startswith("s3://"):
    import obstore.store, s3fs
before, started, began = peak_bytes(), time.perf_counter(), time.process_time()
manifest = load_manifest(sys.argv[1], cache_dir=sys.argv[2])
took = time.perf_counter() - started, time.process_time() - began
print(*took, peak_bytes() - before, manifest.num_rows, len(manifest.rows_of_group))
"""


def main(arguments: list[str] | None = None) -> None:
    """Makes the files, times both starts and prints them."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.startup", description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=500, help="rows of a file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--links", action="store_true", help="one file under many names")
    parser.add_argument("--delay", type=float, help="seconds that each request of a store waits")
    parser.add_argument("--threads", type=int, nargs="+", default=[REMOTE_THREADS])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "objects" / "data"
        write(data, 1 if options.links else options.files, options.rows)
        for number in range(len(list(data.iterdir())), options.files):
            os.link(data / "shard-00000.parquet", data / f"shard-{number:05d}.parquet")
        print(f"{options.files:,} files of {options.rows} rows, {options.repeats} repeats")
        num_rows = options.files * options.rows
        if options.delay is None:
            from_disk(data, folder / "cache", num_rows, options.repeats)
        else:
            with quick_store(data.parent, options.delay) as store:
                from_store(store, data, num_rows, options.delay, options.threads, options.repeats)


def from_disk(data: Path, cache: Path, num_rows: int, repeats: int) -> None:
    """Cold and cached."""
    for repeat in range(repeats):
        shutil.rmtree(cache, ignore_errors=True)
        for name in ("cold", "cached"):
            print(f"repeat {repeat + 1}  {name:7} {start(str(data), cache, num_rows)}", flush=True)


def from_store(
    store: Store, data: Path, num_rows: int, delay_seconds: float, threads: Sequence[int], repeats: int
) -> None:
    """Cold from the disk and, with each number of threads, from a store; cached once."""
    cache, url = data.parent.parent / "cache", f"{store.url}/{data.name}"
    for repeat in range(repeats):
        shutil.rmtree(cache, ignore_errors=True)
        disk = start(str(data), cache, num_rows)
        print(f"repeat {repeat + 1}  disk, cold         {disk}", flush=True)
        for num_threads in threads if repeat % 2 == 0 else threads[::-1]:
            shutil.rmtree(cache)
            before = store.served()
            took = start(url, cache, num_rows, num_threads)
            after = store.served()
            requests = after.requests - before.requests
            floor = delay_seconds * requests / num_threads
            print(
                f"repeat {repeat + 1}  store, {num_threads:3} threads {took}; {requests:,} requests, "
                f"{(after.body_bytes - before.body_bytes) / 2**20:.0f} MiB, floor {floor:.2f} s, ratio "
                f"{took.seconds / max(floor, disk.seconds):.2f}",
                flush=True,
            )
        print(f"repeat {repeat + 1}  store, cached      {start(url, cache, num_rows)}", flush=True)


def write(data: Path, num_files: int, rows: int) -> None:
    """Files of different tiny random images in row groups of 64."""
    data.mkdir(parents=True)
    generator = np.random.default_rng(0)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number in range(num_files):
        images = [{"bytes": generator.bytes(32), "path": f"{number}/{row}.png"} for row in range(rows)]
        pq.write_table(
            pa.table({"image": pa.array(images, kind)}),
            data / f"shard-{number:05d}.parquet",
            row_group_size=64,
        )


@dataclass(frozen=True)
class Start:
    """What one `load_manifest` took, without imports."""

    seconds: float
    cpu_seconds: float
    num_bytes: float
    groups: float

    def __str__(self) -> str:
        return (
            f"{self.seconds:6.2f} s, {self.cpu_seconds:6.2f} of CPU, {self.num_bytes / 2**20:5.0f} MiB of "
            f"memory, {self.groups:,.0f} row groups"
        )


def start(url: str, cache: Path, num_rows: int, threads: int = REMOTE_THREADS) -> Start:
    """A `load_manifest` in a process of its own; `threads` read footers of a store."""
    command = [sys.executable, "-c", PROGRAM, url, str(cache), str(threads)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    seconds, cpu_seconds, num_bytes, found, groups = map(float, said)
    assert found == num_rows
    return Start(seconds, cpu_seconds, num_bytes, groups)


if __name__ == "__main__":
    main()
