"""Peak resident memory of one rank that reads: 100 MB in small row groups, ten times as much,
and 500 MB in each row group.

    python -m tests.benchmarks.memory [--megabytes 1000]

Each data set is read in a process of its own through the same loader as in training (without decoding),
until some thousand rows were given; the smallest set fills the shuffle window and the budget for reading
ahead as well. Pages are of about 1 MiB: whoever writes images with pyarrow's defaults puts 1,024 of them in
a page, and a page is read as a whole.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

IMAGE_BYTES, FILE_MEGABYTES, READ_MEGABYTES = 50_000, 500, 200
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    large = parser.parse_args(arguments).megabytes
    with tempfile.TemporaryDirectory() as folder:
        small = peak_mib(str(write(Path(folder) / "small", megabytes=large // 10, rows_per_group=64)))
        print(f"{large // 10} MB in row groups of 64: {small:.0f} MiB")
        for name, rows_per_group in (("row groups of 64", 64), ("one row group", 10**9)):
            peak = peak_mib(str(write(Path(folder) / name, megabytes=large, rows_per_group=rows_per_group)))
            print(f"{large} MB in {name}: {peak:.0f} MiB ({peak / small - 1:+.1%})")


def write(folder: Path, *, megabytes: int, rows_per_group: int) -> Path:
    """Shards of random bytes (as incompressible as JPEG), in pages of about 1 MiB."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(megabytes)
    schema = pa.schema([("image", IMAGE), ("label", pa.int64())])
    rows_left, rows_per_file = megabytes * 10**6 // IMAGE_BYTES, FILE_MEGABYTES * 10**6 // IMAGE_BYTES
    for number in itertools.count():
        num = min(rows_left, rows_per_file)
        if not num:
            return folder
        images = [{"bytes": generator.bytes(IMAGE_BYTES), "path": ""} for _ in range(num)]
        table = pa.table({"image": pa.array(images, IMAGE), "label": list(range(num))}, schema)
        path = folder / f"{number:05d}.parquet"
        pq.write_table(table, path, row_group_size=min(rows_per_group, num), write_batch_size=16)
        rows_left -= num
    raise AssertionError


def peak_mib(url: str, *, prefetch_mib: int = 64, repeats: int = 3) -> float:
    """The peak resident memory of a process that reads there, in MiB; the median of `repeats` processes."""
    command = [sys.executable, "-m", "tests.benchmarks.memory_reader", url, str(prefetch_mib)]
    results = [
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True) for _ in range(repeats)
    ]
    return statistics.median(float(result.stdout) for result in results)


def read(url: str, prefetch_mib: int) -> float:
    """Reads in this process; gives its peak resident memory in MiB."""
    from pretrain.data.reading.loader import Loader
    from pretrain.data.reading.manifest import load_manifest
    from pretrain.data.reading.order import Order
    from pretrain.data.reading.shards import Shards

    shards = Shards(load_manifest(url, columns=["label"]), image_column="image", columns=["label"])
    order = Order(
        shards.manifest.rows_of_group, batch_size_global=64, num_streams=4, window_rows=1024, seed=0
    )
    transform = _Touch()
    with Loader(
        order, shards, transform, rank=0, world_size=1, prefetch_bytes=prefetch_mib * 2**20
    ) as loader:
        for _ in itertools.islice(loader, READ_MEGABYTES * 10**6 // (64 * IMAGE_BYTES)):
            pass
    # not getrusage, whose maximum a process inherits from the one that started it
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) / 2**10


class _Touch:
    """Looks at a byte of each image."""

    parameters = geometry_VB5 = None

    def begin(self, passes: np.ndarray, row_ids: np.ndarray) -> _Touch:
        filling = _Touch()
        filling.arrays = [np.zeros((len(row_ids), 1), np.uint8)]
        return filling

    def fill(self, index: int, data: memoryview) -> None:
        self.arrays[0][index] = data[-1] & 0xFF


if __name__ == "__main__":
    main()
