"""One turn of `tests.benchmarks.peers` in a process of its own, which prints a line of JSON.

    PYTHON tests/benchmarks/peer_loops.py WHAT SOURCE --batches 40 --warm-up 10

WHAT is one of LOOPS. Run by path, for the environment of the peers has nothing of this project.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

BATCH, SIDE, SCALE = 64, 224, (0.08, 1.0)


def main() -> None:
    """Images a second by the clock and milliseconds of CPU an image, children included,
    after the first batches.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=LOOPS)
    parser.add_argument("source")
    parser.add_argument("--batches", type=int, required=True)
    parser.add_argument("--warm-up", type=int, required=True)
    options = parser.parse_args()
    batches = LOOPS[options.what](options.source)
    for _ in itertools.islice(batches, options.warm_up):
        pass
    wall, cpu, num = time.perf_counter(), cpu_seconds(), 0
    for size in itertools.islice(batches, options.batches):
        num += size
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    print(json.dumps({"rate": num / wall, "cpu_ms": 1000 * cpu / num, "images": num}), flush=True)
    os._exit(0)  # without waiting for what was fetched ahead


def cpu_seconds() -> float:
    """Of this process and its children."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def ours(url: str) -> Iterator[int]:
    """What the host makes for a GPU: two random crops of each image, mirrored or not, in bytes."""
    from pretrain.data.reading.loader import Loader
    from pretrain.data.reading.manifest import load_manifest
    from pretrain.data.reading.order import Order, default_num_streams
    from pretrain.data.reading.shards import Shards
    from pretrain.data.views.random_views import RandomViews
    from pretrain.data.views.recipes import recipe_views

    shards = Shards(load_manifest(url), image_column="image")
    order = Order(
        shards.manifest.rows_of_group, batch_size_global=BATCH, num_streams=default_num_streams(BATCH),
        window_rows=1024, seed=0,
    )  # fmt: skip
    views = RandomViews(
        recipe_views("simclr", SIDE, {"crop_scale": list(SCALE)}), seed=0, colours_on_host=False
    )
    with Loader(
        order, shards, views, rank=0, world_size=1, decode_threads=1, prefetch_bytes=32 * 2**20
    ) as loader:
        for batch in loader:
            yield len(batch.arrays[0])


def dali_once(folder: str) -> Iterator[int]:
    """DALI's CPU operators on files: decoded once, cropped twice."""
    return _dali(folder, once=True)


def dali_twice(folder: str) -> Iterator[int]:
    """DALI's CPU operators on files: each crop decoded by itself, and no more of the image than it needs."""
    return _dali(folder, once=False)


def _dali(folder: str, *, once: bool) -> Iterator[int]:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=1, device_id=None, seed=0)
    def two_crops() -> Any:
        encoded, _ = fn.readers.file(file_root=folder, random_shuffle=True, initial_fill=1024)
        if once:
            image = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
            return tuple(fn.random_resized_crop(image, size=SIDE, random_area=list(SCALE)) for _ in range(2))
        crops = [
            fn.decoders.image_random_crop(
                encoded, device="cpu", output_type=types.RGB, random_area=list(SCALE)
            )
            for _ in range(2)
        ]
        return tuple(fn.resize(crop, size=[SIDE, SIDE]) for crop in crops)

    pipeline = two_crops()
    pipeline.build()
    while True:
        first, _ = pipeline.run()
        yield len(first)


class TwoCrops:
    """Of a row's image, by torchvision: bytes [3, side, side]."""

    def __init__(self) -> None:
        from torchvision.transforms.v2 import RandomResizedCrop

        self.crop = RandomResizedCrop(SIDE, scale=SCALE, antialias=True)

    def __call__(self, row: Any) -> tuple[Any, Any]:
        import torch
        from torchvision.io import ImageReadMode, decode_image

        data = row["image"] if isinstance(row, dict) else row[0]
        data = data["bytes"] if isinstance(data, dict) else data
        image = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        return self.crop(image), self.crop(image)


def litdata(url: str) -> Iterator[int]:
    """LitData from the shards, fetched by its threads; torchvision decodes and crops in this process."""
    import torch
    from litdata import StreamingDataLoader, StreamingDataset, index_parquet_dataset
    from litdata.streaming import downloader
    from litdata.streaming.item_loader import ParquetLoader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # the store here is one without TLS
    torch.set_num_threads(1)
    cache, is_local = Path(os.environ["PEER_CACHE"]), "://" not in url
    (cache / "index").mkdir()
    index_parquet_dataset(url, str(cache / "index"))  # in a store the index goes beside the shards
    data = StreamingDataset(
        url, item_loader=ParquetLoader(), index_path=str(cache / "index") if is_local else None,
        cache_dir=str(cache / "chunks"), shuffle=True, transform=TwoCrops(),
    )  # fmt: skip
    for first, _ in StreamingDataLoader(data, batch_size=BATCH, num_workers=0, drop_last=True):
        yield len(first)


LOOPS: dict[str, Callable[[str], Iterator[int]]] = {
    "ours": ours,
    "dali_once": dali_once,
    "dali_twice": dali_twice,
    "litdata": litdata,
}

if __name__ == "__main__":
    main()
