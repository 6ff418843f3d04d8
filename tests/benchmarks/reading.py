"""What reading costs beside decoding: the loader from Parquet over decoding alone
of the same images on the same cores.

    python -m tests.benchmarks.reading PHOTOS [--batches 60] [--threads 0] [--repeats 3]

PHOTOS is a folder of shards with real photos. Decoding alone takes the encoded images from memory and fills
batches with a thread pool of the same size, by the same functions; the loader reads, orders, decodes and
batches. Interleaved. CPU time is that of the process;
the least of the repeats is what other work on the machine adds least to.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pretrain.data.reading.loader import Batch, Loader, fill_slots
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.order import Order, default_num_streams
from pretrain.data.reading.shards import Shards
from pretrain.data.views.random_views import CentralCrop

BATCH, SIDE, WARM_UP = 64, 96, 10


class Kept(CentralCrop):
    """Keeps what was decoded, to decode it again without reading."""

    def __init__(self, side: int) -> None:
        super().__init__(side)
        self.images: list[bytes] = []

    def begin(self, passes, row_ids):  # type: ignore[no-untyped-def]
        filling = super().begin(passes, row_ids)
        fill = filling.fill

        def kept(index, data):  # type: ignore[no-untyped-def]
            self.images.append(bytes(data))
            fill(index, data)

        filling.fill = kept
        return filling


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints both ratios."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.reading", description=__doc__)
    parser.add_argument("photos")
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--threads", type=int, default=0, help="threads that decode; 0 is one a core")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    threads = options.threads or len(os.sched_getaffinity(0))

    shards = Shards(load_manifest(options.photos), image_column="image")
    order = Order(
        shards.manifest.rows_of_group,
        batch_size_global=BATCH,
        num_streams=default_num_streams(BATCH),
        window_rows=1024,
        seed=0,
    )
    images = images_of(order, shards, options.batches, threads)
    wall: dict[str, list[float]] = {"read and decode": [], "decode": []}
    cpu: dict[str, list[float]] = {"read and decode": [], "decode": []}
    for repeat in range(options.repeats):
        for name in list(wall) if repeat % 2 == 0 else list(wall)[::-1]:
            seconds, cpu_seconds = (
                decoded(images, threads)
                if name == "decode"
                else loaded(order, shards, options.batches, threads)
            )
            wall[name].append(len(images) / seconds)
            cpu[name].append(cpu_seconds / len(images) * 1e3)
            print(
                f"{name}: {wall[name][-1]:.0f} images/s, {cpu[name][-1]:.3f} ms of CPU an image", flush=True
            )
    both, alone = (statistics.median(wall[name]) for name in wall)
    cpu_both, cpu_alone = (statistics.median(cpu[name]) for name in cpu)
    min_both, min_alone = (min(cpu[name]) for name in cpu)
    print(
        f"\nthroughput of reading and decoding over decoding alone: {both / alone:.3f} "
        f"({both:.0f} over {alone:.0f} images/s)"
    )
    print(
        f"CPU time of decoding alone over reading and decoding: {cpu_alone / cpu_both:.3f} "
        f"({cpu_alone:.3f} over {cpu_both:.3f} ms an image; medians of {options.repeats}), "
        f"{min_alone / min_both:.3f} ({min_alone:.3f} over {min_both:.3f} ms; the least of each)"
    )


def loaded(order: Order, shards: Shards, num_batches: int, threads: int) -> tuple[float, float]:
    """Seconds and CPU seconds of the loader for the batches after the warm-up."""
    with Loader(order, shards, CentralCrop(SIDE), rank=0, world_size=1, decode_threads=threads) as loader:
        for _ in itertools.islice(loader, WARM_UP):
            pass
        # what is read ahead at the start belongs to no batch; from here on it is as much as is taken
        until_idle()
        return timed(lambda: [None for _ in itertools.islice(loader, num_batches)])


def until_idle() -> None:
    """Returns when this process computes nothing any more."""
    while True:
        before = time.process_time()
        time.sleep(0.1)
        if time.process_time() - before < 0.005:
            return


def images_of(order: Order, shards: Shards, num_batches: int, threads: int) -> list[bytes]:
    """The encoded images of the batches that `loaded` times."""
    kept = Kept(SIDE)
    with Loader(order, shards, kept, rank=0, world_size=1, decode_threads=threads) as loader:
        for _ in itertools.islice(loader, WARM_UP + num_batches):
            pass
    return kept.images[WARM_UP * BATCH : (WARM_UP + num_batches) * BATCH]


def decoded(images: list[bytes], threads: int) -> tuple[float, float]:
    """Seconds and CPU seconds of decoding alone, batch after batch with two on their way,
    as the loader does it.
    """
    from pretrain.data.reading.shards import Rows

    transform, share = CentralCrop(SIDE), max(1, min(8, BATCH // threads))

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            ahead = []
            for start in range(0, len(images), BATCH):
                part = images[start : start + BATCH]
                ids = list(range(len(part)))
                rows = Rows(ids, [0] * len(part), part, {})  # type: ignore[arg-type]
                numbers = np.array(ids)
                filling = transform.begin(numbers, numbers)
                batch = Batch(numbers, numbers, filling.arrays, {})
                places = [(rows, position) for position in ids]
                ahead.append(
                    [
                        pool.submit(fill_slots, filling, batch, first, places[first : first + share])
                        for first in range(0, len(part), share)
                    ]
                )
                if len(ahead) > 2:
                    for job in ahead.pop(0):
                        job.result()

    return timed(run)


def timed(function) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Seconds and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
