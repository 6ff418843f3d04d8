"""Folders of features made on the spot, without a network:
what is stored for an image names the number in its colour.
"""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from cluster.batch.jobs import BatchJob, Machines, parts_of, run_batch_job
from pretrain.data.reading.decoded import DecodedRows, pixels_of, units_of
from pretrain.data.reading.feature_layout import (
    DESCRIPTION,
    FORMAT_VERSION,
    STATISTICS,
    as_column,
    row_groups_of,
)
from pretrain.data.reading.feature_statistics import write_description
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.views.random_views import CentralCrop
from tests.pretrain.shards import number_of

SIDE, DIM, CELLS, CHANNELS = 6, 5, 2, 3


def features_of(number):
    """float16 [DIM] that no other number below a million has."""
    return np.array([number % 1000, number // 1000, *range(DIM - 2)], np.float16)


def maps_of(number):
    """float16 [CHANNELS, CELLS, CELLS]."""
    return (np.arange(CHANNELS * CELLS**2).reshape(CHANNELS, CELLS, CELLS) + number % 1000).astype(
        np.float16
    )


def write_features(out, urls, *, rows_per_part=16, maps=True, without=()):
    """Does to `encoded` images what embed does; rows of the numbers in `without` get no
    features though they can be decoded.
    """
    urls = [urls] if isinstance(urls, str) else list(urls)
    manifest = load_manifest(urls)

    def compute(table):
        pixels = pixels_of(table, size=SIDE, channels=3)
        numbers = [number_of(image) for image in pixels]
        good = table["pixels"].combine_chunks().is_valid().to_numpy(zero_copy_only=False)
        good &= ~np.isin(numbers, without)
        kept = [number for number, is_good in zip(numbers, good, strict=True) if is_good]
        columns = {"features": np.array([features_of(number) for number in kept]).reshape(-1, DIM)}
        if maps:
            columns["maps"] = np.array([maps_of(number).ravel() for number in kept]).reshape(
                -1, CHANNELS * CELLS**2
            )
        table = table.drop_columns(["pixels"])
        for position, (name, values) in enumerate(columns.items()):
            table = table.add_column(position, name, as_column(values.astype(np.float16), good))
        return table

    job = BatchJob(
        units=units_of(manifest, rows_per_part=rows_per_part),
        prepare=DecodedRows(
            manifest, "image", [], CentralCrop(SIDE), rows_per_part=rows_per_part, with_bad=True
        ),
        compute=lambda: compute,
        out=str(out),
        identity={},
        row_groups=row_groups_of,
    )
    run_batch_job(job, Machines())
    write_description(
        str(out),
        sorted(parts_of(job)),
        manifest=manifest,
        data_urls=urls,
        rows_per_part=rows_per_part,
        teacher={"name": "the colour's number", "dim": DIM},
        maps={"cells": CELLS, "channels": CHANNELS, "explained": 1.0} if maps else None,
        images={"size": SIDE, "whole_image": True, "crop_share": None},
    )
    return str(out)


def describe_features_only(folder, *, dim=6, channels=3, cells=4, deviations=None):
    """What a method is built with: the description and statistics of a folder of features,
    without the features; `deviations` are those of the principal directions.
    """
    folder = Path(folder)
    maps = {"cells": cells, "channels": channels, "explained": 1.0}
    content = {
        "format_version": FORMAT_VERSION,
        "dim": dim,
        "maps": maps,
        "rows": 0,
        "teacher": {"name": "made up", "weights_sha256": "0" * 64, "licence": "none"},
        "images": {"size": SIDE, "whole_image": True, "crop_share": None},
    }
    (folder / DESCRIPTION).write_text(json.dumps(content))
    generator = np.random.default_rng(0)
    directions = np.linalg.qr(generator.standard_normal((dim, dim)))[0]
    statistics = {
        "mean": generator.standard_normal(dim),
        "deviation": np.ones(dim),
        "eigenvectors": directions,
        "deviations": np.linspace(2, 0.5, dim) if deviations is None else deviations,
        "variance": np.ones(1),
    }
    tensors = {name: np.ascontiguousarray(values, np.float32) for name, values in statistics.items()}
    safetensors.numpy.save_file(tensors, folder / STATISTICS)
    return str(folder)
