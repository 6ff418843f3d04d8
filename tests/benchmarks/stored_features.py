"""What stored features cost beside their images:
CPU time of the loader with and without them, from a disk and from S3.

    python -m tests.benchmarks.stored_features [--photos SHARDS] [--dim 1280] [--batches 60] [--repeats 3]

The loader makes SimCLR's two views at 64 pixels of each image, and reads no features, pooled features, or
maps (64 channels at 7 x 7 positions) as well; the numbers stored are random. Turns are interleaved, and the
least of the repeats is what other work on the machine adds least to. The store is moto's server in another
process, whose CPU time is not counted. Reading alone is timed too:
all rows of the features, without images, CPU time and memory per row.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.batch.jobs import BatchJob, Machines, parts_of, run_batch_job
from pretrain.data.reading.decoded import DecodedRows, units_of
from pretrain.data.reading.feature_layout import as_column, row_groups_of
from pretrain.data.reading.feature_statistics import write_description
from pretrain.data.reading.loader import Loader
from pretrain.data.reading.manifest import Manifest, load_manifest
from pretrain.data.reading.order import Order, Segment, default_num_streams
from pretrain.data.reading.shards import Shards, Source
from pretrain.data.reading.stored_features import StoredFeatures, with_features
from pretrain.data.views.random_views import CentralCrop, RandomViews
from pretrain.data.views.recipes import simclr_views
from tests.benchmarks.reading import until_idle
from tests.benchmarks.streaming import store

BATCH, SIDE, WARM_UP = 64, 64, 10
CHANNELS, CELLS = 64, 7


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.stored_features", description=__doc__)
    parser.add_argument("--photos", type=Path, help="a folder of shards; by default made-up scenes")
    parser.add_argument("--dim", type=int, default=1280, help="of pooled features")
    parser.add_argument("--batches", type=int, default=60, help="batches that are timed in each turn")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)

    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, store(cores[-1:], 0.0) as url:
        photos = options.photos or Path(folder) / "scenes" / "train"
        if options.photos is None:
            from pretrain.data.scenes.scenes import write_demo

            write_demo(f"{folder}/scenes", num_images=2500)
        manifest = load_manifest(str(photos))
        features = write_random_features(f"{folder}/features", str(photos), manifest, options.dim)
        for source, target in ((photos, f"{url}/photos"), (Path(features), f"{url}/features")):
            for path in sorted(Path(source).iterdir()):
                storage.upload(path, f"{target}/{path.name}")
        places = {"disk": (str(photos), features), "S3": (f"{url}/photos", f"{url}/features")}

        turns: dict[str, Callable[[], float]] = {}
        for place, (data, stored) in places.items():
            for name, columns in {
                "images": [],
                "features": ["features"],
                "maps": ["features", "maps"],
            }.items():
                turns[f"{place}: {name}"] = lambda data=data, stored=stored, columns=columns: loaded(
                    data, stored, columns, options.batches
                )
                if columns:
                    turns[f"{place}: {name} alone"] = lambda stored=stored, columns=columns: alone(
                        manifest, stored, columns
                    )
        times: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(options.repeats):
            for name, turn in turns.items():
                times[name].append(turn())
        print(
            f"{manifest.num_rows:,} images of "
            f"{Shards(manifest, image_column='image').mean_row_bytes / 1e3:.1f} kB, {options.dim} "
            f"dimensions, maps of {CHANNELS} x {CELLS} x {CELLS}; the least of {options.repeats}"
        )
        for name, seconds in times.items():
            print(f"{name}: {min(seconds) * 1e6:.1f} us of CPU an image (from {min(seconds) * 1e6:.1f} to "
                  f"{max(seconds) * 1e6:.1f})")  # fmt: skip


def write_random_features(out: str, url: str, manifest: Manifest, dim: int) -> str:
    """A folder of features with random numbers; returns its URL."""
    generator = np.random.default_rng(0)

    def compute(table: pa.Table) -> pa.Table:
        good, table = np.ones(table.num_rows, bool), table.drop_columns(["pixels"])
        for position, (name, width) in enumerate({"features": dim, "maps": CHANNELS * CELLS**2}.items()):
            values = generator.standard_normal((table.num_rows, width), np.float32).astype(np.float16)
            table = table.add_column(position, name, as_column(values, good))
        return table

    job = BatchJob(
        units=units_of(manifest),
        prepare=DecodedRows(manifest, "image", [], CentralCrop(8), with_bad=True),
        compute=lambda: compute,
        out=out,
        identity={},
        row_groups=row_groups_of,
    )
    run_batch_job(job, Machines())
    write_description(
        out,
        sorted(parts_of(job)),
        manifest=manifest,
        data_urls=[url],
        rows_per_part=512,
        teacher={"name": "random numbers", "dim": dim},
        maps={"cells": CELLS, "channels": CHANNELS, "explained": 1.0},
        images={"size": 8, "whole_image": True, "crop_share": None},
    )
    return out


def loaded(data: str, stored: str, columns: list[str], num_batches: int) -> float:
    """CPU seconds an image of a loader for the batches after the warm-up;
    columns are stacked, as a method does.
    """
    manifest = load_manifest(data)
    source: Source = Shards(manifest, image_column="image")
    if columns:
        source = with_features(source, StoredFeatures(stored, manifest), columns)
    order = Order(
        manifest.rows_of_group,
        batch_size_global=BATCH,
        num_streams=default_num_streams(BATCH),
        window_rows=1024,
        seed=0,
    )
    with Loader(order, source, RandomViews(simclr_views(SIDE), seed=0), rank=0, world_size=1) as loader:

        def take(num: int) -> None:
            for batch in itertools.islice(loader, num):
                for name in columns:
                    np.stack(batch.columns[name])

        take(WARM_UP)
        until_idle()
        return timed(lambda: take(num_batches)) / (num_batches * BATCH)


def alone(manifest: Manifest, stored: str, columns: list[str]) -> float:
    """CPU seconds a row of reading all features and no images."""
    files = StoredFeatures(stored, manifest).files(columns)

    def read() -> None:
        for group, rows in enumerate(files.manifest.rows_of_group.tolist()):
            for _ in files.read(Segment(group, 0, rows)):
                pass

    read()  # footers are read once a run
    return timed(read) / manifest.num_rows


def timed(function: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    cpu = time.process_time()
    function()
    return time.process_time() - cpu


if __name__ == "__main__":
    main()
