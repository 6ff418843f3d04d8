"""Some images of a data set, evenly spread over it, in bounded time and memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster import storage
from pretrain.data.checking.tallies import count_classes
from pretrain.data.reading.annotation_columns import find_class_column
from pretrain.data.reading.annotations import name_of_class
from pretrain.data.reading.footers import read_footer
from pretrain.data.reading.loader import filled
from pretrain.data.reading.manifest import Manifest, find_shards, load_manifest
from pretrain.data.reading.order import Segment
from pretrain.data.reading.shards import Shards
from pretrain.data.views.random_views import CentralCrop
from pretrain.data.views.view_sheet import shown

# positions of a data set that are looked at; in a store each may cost the transfer of a whole row group
LOCAL_SPOTS, REMOTE_SPOTS = 64, 16
TILE = 128  # pixels of a square to show
NUM_IMAGES = 400  # where the settings of a run do not say how many
NUM_KEPT = 24  # encoded images that stay in memory


@dataclass(frozen=True)
class Row:
    """One row as it lies in the data set."""

    row_id: int
    data: bytes
    columns: dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """Decoded images of a data set, N of them.

    Attributes:
        num_rows: of the whole data set.
        crops_NCSS: uint8, the central squares as the encoder takes them.
        tiles: uint8 [TILE, TILE, 3] each, the same squares to show.
        columns: the other columns that were asked for, N values each.
        row_ids: of the data set.
        first: the first of the encoded rows.
    """

    num_rows: int
    crops_NCSS: np.ndarray
    tiles: list[np.ndarray]
    columns: dict[str, list[Any]]
    row_ids: list[int]
    first: list[Row]

    def __len__(self) -> int:
        return len(self.tiles)


def draw_sample(
    urls: str | Sequence[str],
    *,
    image_column: str,
    columns: Sequence[str] = (),
    size: int,
    crop_fraction: float,
    channels: int = 3,
    num_images: int,
    deadline: float,
) -> Sample:
    """Reads and decodes images; those that cannot be decoded are left out.

    Args:
        size, crop_fraction, channels: of the squares, see `CentralCrop`.
        num_images: at most so many.
        deadline: of `time.monotonic()`, after which no more is read; what was read by then is enough.

    Raises UserError when the data set cannot be opened.
    """
    manifest = load_manifest(urls, columns=[image_column, *columns], image_column=image_column)
    shards = Shards(manifest, image_column=image_column, columns=columns)
    crop = CentralCrop(size, fraction=crop_fraction, channels=channels)
    tile = CentralCrop(TILE, fraction=crop_fraction, channels=channels)

    def decoded(row: Row) -> tuple[Row, np.ndarray, np.ndarray] | None:
        squares = []
        for transform in (crop, tile):
            filling, bad = filled(transform, [row.data])
            if bad:
                return None
            squares.append(filling.arrays[0][0])
        return row, squares[0], shown(squares[1])

    rows: list[Row] = []
    crops: list[np.ndarray] = []
    tiles: list[np.ndarray] = []
    with ThreadPoolExecutor(2, thread_name_prefix="decode") as pool:
        for some in _in_chunks(spread_rows(shards, num_images), 32):
            for one in pool.map(decoded, some):
                if one is not None:
                    row, pixels, square = one
                    # the bytes of a few are enough; the rest is let go
                    rows.append(row if len(rows) < NUM_KEPT else Row(row.row_id, b"", row.columns))
                    crops.append(pixels)
                    tiles.append(square)
            if time.monotonic() > deadline:
                break
    return Sample(
        num_rows=manifest.num_rows,
        crops_NCSS=np.stack(crops) if crops else np.zeros((0, channels, size, size), np.uint8),
        tiles=tiles,
        columns={name: [row.columns[name] for row in rows] for name in columns},
        row_ids=[row.row_id for row in rows],
        first=rows[:NUM_KEPT],
    )


def spread_rows(shards: Shards, num: int) -> Iterator[Row]:
    """At most `num` rows in runs at even distances, coarse first: stopped anywhere, all parts were seen."""
    manifest = shards.manifest
    spots = LOCAL_SPOTS if storage.is_local(manifest.files[0].url) else REMOTE_SPOTS
    for segment in spread_segments(manifest, num, spots):
        for piece in shards.read(segment):
            for index, (row_id, image) in enumerate(zip(piece.row_ids, piece.images, strict=True)):
                if image is not None:
                    columns = {name: values[index] for name, values in piece.columns.items()}
                    yield Row(row_id, image, columns)


def spread_segments(manifest: Manifest, num: int, spots: int) -> list[Segment]:
    """Where `num` rows are read: as many runs as `spots` allows, each inside a row group, coarse first."""
    num = min(num, manifest.num_rows)
    spots = max(1, min(spots, num))
    length = -(-num // spots)
    starts = [spot * manifest.num_rows // spots for spot in range(spots)]
    order = sorted(range(spots), key=lambda spot: (_coarseness(spot, spots), spot))
    segments, left = [], num
    for spot in order:
        end = starts[spot + 1] if spot + 1 < spots else manifest.num_rows
        groups, rows = manifest.locate([starts[spot]])
        group, row = int(groups[0]), int(rows[0])
        size = min(length, left, end - starts[spot], int(manifest.rows_of_group[group]) - row)
        if size > 0:
            segments.append(Segment(group, row, row + size))
            left -= size
    return segments


def _coarseness(spot: int, spots: int) -> int:
    """How often the spots must be halved before this one is among them."""
    level, stride = 0, 1
    while stride < spots:
        stride *= 2
    while spot % stride:
        stride //= 2
        level += 1
    return level


def _in_chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def majority_fraction(url: str, column: str) -> float:
    """Fraction of the most frequent label of a data set among its labelled rows:
    what always naming it would get right.

    Raises UserError when the data set cannot be read.
    """
    files = find_shards([url])
    found = count_classes(files, find_class_column(read_footer(files[0]).schema, column, url))
    counts = Counter({name: num for name, num in found["counts"].items() if name != name_of_class(None)})
    return max(counts.values()) / counts.total() if counts else 0.0
