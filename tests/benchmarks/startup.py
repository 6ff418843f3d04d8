"""How long it takes until a large data set is known:
footers of 2,000 files with 1,000,000 rows, cold and cached.

    python -m tests.benchmarks.startup [--files 2000] [--rows 500] [--repeats 3] [--links]

The files hold tiny images and are made on the spot; with `--links` they are one file under many names, which
makes the footers of 100 million rows in seconds (`--files 20000 --rows 5000 --links`). Cold: no manifest is
remembered; cached: the listing is compared and the footers are not read. Each time is that of
`load_manifest` in a fresh process, imports left out, and the page cache warm;
the memory is the process's peak over what it had before.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PROGRAM = """
import sys, time
from cluster.training.memory import peak_bytes
from pretrain.data.reading.manifest import load_manifest
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
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        data, cache = Path(folder) / "data", Path(folder) / "cache"
        write(data, 1 if options.links else options.files, options.rows)
        for number in range(len(list(data.iterdir())), options.files):
            os.link(data / "shard-00000.parquet", data / f"shard-{number:05d}.parquet")
        print(f"{options.files:,} files of {options.rows} rows, {options.repeats} repeats")
        for repeat in range(options.repeats):
            shutil.rmtree(cache, ignore_errors=True)
            for name in ("cold", "cached"):
                print(
                    f"repeat {repeat + 1}  {name:7} {start(data, cache, options.files * options.rows)}",
                    flush=True,
                )


def write(data: Path, num_files: int, rows: int) -> None:
    """Files of different tiny random images in row groups of 64."""
    data.mkdir()
    generator = np.random.default_rng(0)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number in range(num_files):
        images = [{"bytes": generator.bytes(32), "path": f"{number}/{row}.png"} for row in range(rows)]
        pq.write_table(
            pa.table({"image": pa.array(images, kind)}),
            data / f"shard-{number:05d}.parquet",
            row_group_size=64,
        )


def start(data: Path, cache: Path, num_rows: int) -> str:
    """What one `load_manifest` took, in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, str(data), str(cache)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    seconds, cpu_seconds, num_bytes, found, groups = map(float, said)
    assert found == num_rows
    return (
        f"{seconds:6.2f} s, {cpu_seconds:6.2f} of CPU, {num_bytes / 2**20:5.0f} MiB, {groups:,.0f} row "
        "groups"
    )


if __name__ == "__main__":
    main()
