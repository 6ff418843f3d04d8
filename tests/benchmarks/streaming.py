"""What distance costs: images a second of one rank from S3 with 50 ms added to each request,
over those from a disk.

    python -m tests.benchmarks.streaming [--photos SHARDS] [--copies 8] [--delay 0.05] [--batches 60]
        [--repeats 3]

The same shards are read, decoded and cropped by the same loader in the same process, interleaved so that a
noisy machine is noisy for both. Both read 32 MiB ahead, and the first batches of each turn, in which that
fills, are left out. A small data set is read as if it held several copies of itself: with hardly more row
groups than streams, most would be read by two streams. The store (moto's server, which keeps objects in
memory here, and the proxy that delays) has a core of its own where there are two, the rank has the others:
what the store computes is not the rank's.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BATCH, SIDE, WARM_UP, AHEAD_BYTES = 64, 96, 40, 32 * 2**20


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the ratio."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.streaming", description=__doc__)
    parser.add_argument("--photos", type=Path, help="a folder of shards; by default made-up scenes")
    parser.add_argument("--copies", type=int, default=8, help="copies of each shard that the data set holds")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds added to each request")
    parser.add_argument("--batches", type=int, default=60, help="batches that are timed in each turn")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)

    cores = sorted(os.sched_getaffinity(0))
    for_rank, for_store = (cores[:-1], cores[-1:]) if len(cores) > 1 else (cores, cores)
    with tempfile.TemporaryDirectory() as folder, store(for_store, options.delay) as url:
        os.sched_setaffinity(0, for_rank)
        from cluster import storage
        from pretrain.data.scenes.scenes import write_demo

        if options.photos is None:
            write_demo(folder, num_images=2500)
        local = Path(folder) / "copies"
        local.mkdir()
        for path in sorted((options.photos or Path(folder) / "train").glob("*.parquet")):
            for copy in range(options.copies):
                (local / f"{copy}-{path.name}").symlink_to(path.resolve())
                storage.upload(path, f"{url}/{copy}-{path.name}")
        rates: dict[str, list[float]] = {"disk": [], "S3": []}
        cpu: dict[str, list[float]] = {"disk": [], "S3": []}
        for repeat in range(options.repeats):
            turns = [("disk", str(local)), ("S3", url)]
            for name, source in turns if repeat % 2 == 0 else turns[::-1]:
                rate, cpu_ms = measured(source, options.batches, threads=len(for_rank))
                rates[name].append(rate)
                cpu[name].append(cpu_ms)
                print(f"{name}: {rate:.0f} images/s, {cpu_ms:.3f} ms of CPU an image", flush=True)
        os.sched_setaffinity(0, cores)
        disk, s3 = (statistics.median(rates[name]) for name in ("disk", "S3"))
        print(f"\nS3 with {options.delay * 1000:.0f} ms a request over disk, after warm-up: {s3 / disk:.3f} "
              f"({s3:.0f} over {disk:.0f} images/s, medians of {options.repeats}; "
              f"{storage.retries()} reads tried again)")  # fmt: skip
        pairs = [s3 / disk for s3, disk in zip(rates["S3"], rates["disk"], strict=True)]
        print(
            f"turn by turn the ratio is {statistics.median(pairs):.3f} in the median, from "
            f"{min(pairs):.2f} to {max(pairs):.2f}; CPU time "
            f"{statistics.median(cpu['disk']) / statistics.median(cpu['S3']):.3f} "
            f"({statistics.median(cpu['disk']):.3f} over {statistics.median(cpu['S3']):.3f} ms an image)"
        )


def measured(url: str, num_batches: int, *, threads: int) -> tuple[float, float]:
    """Images a second and milliseconds of CPU an image of one rank that decodes and crops,
    after the first batches.
    """
    from pretrain.data.reading.loader import Loader
    from pretrain.data.reading.manifest import load_manifest
    from pretrain.data.reading.order import Order, default_num_streams
    from pretrain.data.reading.shards import Shards
    from pretrain.data.views.random_views import CentralCrop

    shards = Shards(load_manifest(url), image_column="image")
    order = Order(
        shards.manifest.rows_of_group,
        batch_size_global=BATCH,
        num_streams=default_num_streams(BATCH),
        window_rows=1024,
        seed=0,
    )
    ahead = {"decode_threads": threads, "prefetch_bytes": AHEAD_BYTES}
    with Loader(order, shards, CentralCrop(SIDE), rank=0, world_size=1, **ahead) as loader:
        for _ in itertools.islice(loader, WARM_UP):
            pass
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in itertools.islice(loader, num_batches):
            pass
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return num_batches * BATCH / wall, cpu / (num_batches * BATCH) * 1e3


@contextmanager
def store(cores: list[int], delay_seconds: float) -> Iterator[str]:
    """The URL of a bucket in a store of two processes;
    the environment leads every s3fs of this process to it.
    """

    def start(*command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip

    server = start("-c", SERVER)
    processes = [server]
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        proxy = start("-m", "tests.slow_store", "127.0.0.1", port, str(delay_seconds))
        processes.append(proxy)
        assert proxy.stdout is not None
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.stdout.readline().strip()}",
        }
        import boto3
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # of earlier servers
        boto3.client("s3").create_bucket(Bucket="benchmark")
        yield "s3://benchmark/shards"
    finally:
        for process in processes:
            process.terminate()
            process.wait()


SERVER = """
import socket, sys
from moto.s3.models import FakeKey
from moto.server import ThreadedMotoServer
from tests.kept_objects import kept_values
from werkzeug.serving import WSGIRequestHandler
WSGIRequestHandler.protocol_version = "HTTP/1.1"  # connections stay open, as those of stores do
FakeKey.value = kept_values()
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False).start()
print(port, flush=True)
sys.stdin.read()
"""


if __name__ == "__main__":
    main()
