"""Some images by paths, folders, globs and Parquet URLs, for looking at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cluster import storage
from cluster.errors import UserError
from cluster.storage import FileInfo
from pretrain.data.reading.manifest import IMAGE_SUFFIXES, load_manifest
from pretrain.data.reading.order import Segment
from pretrain.data.reading.shards import Shards

PARQUET = ".parquet"


class NamedImage(NamedTuple):
    """An encoded image and what it is called."""

    name: str
    data: bytes


def pick_images(
    sources: str | Sequence[str], *, limit: int = 16, image_column: str = "image"
) -> list[NamedImage]:
    """At most `limit` images, spread evenly over all that the sources hold, in their order.

    Args:
        sources: image files, folders, globs, Parquet files or folders of these; paths or any fsspec URLs.
        image_column: of Parquet files.

    Raises UserError that names the source in which there is no image.
    """
    parts = [
        _opened(source, image_column) for source in ([sources] if isinstance(sources, str) else sources)
    ]
    ends = np.cumsum([part.manifest.num_rows if isinstance(part, Shards) else len(part) for part in parts])
    chosen = np.unique(np.linspace(0, ends[-1] - 1, min(limit, ends[-1])).round().astype(int)).tolist()
    images = []
    for index in chosen:
        number = int(np.searchsorted(ends, index, side="right"))
        part, position = parts[number], index - (int(ends[number - 1]) if number else 0)
        images.append(_row(part, position) if isinstance(part, Shards) else _file(part[position]))
    return images


def _opened(source: str, image_column: str) -> Shards | list[FileInfo]:
    """The shards of a source, or its image files."""
    files = storage.find_files(source, "")
    if not files:
        raise UserError(f"there is nothing at {source}; give image files, folders, globs or Parquet files")
    if any(file.url.lower().endswith((PARQUET, ".pq")) for file in files):
        manifest = load_manifest(source, columns=[image_column], image_column=image_column)
        return Shards(manifest, image_column=image_column)
    images = [file for file in files if file.url.lower().endswith(IMAGE_SUFFIXES)]
    # a single file may be called anything: its bytes say what it is
    images = images or (files if len(files) == 1 else [])
    if not images:
        raise UserError(f"no images in {source} (looked for {', '.join(IMAGE_SUFFIXES)} and {PARQUET})")
    return images


def _file(file: FileInfo) -> NamedImage:
    return NamedImage(file.url.rsplit("/", 1)[-1], storage.read_bytes(file.url))


def _row(shards: Shards, row: int) -> NamedImage:
    groups, rows = shards.manifest.locate([row])
    (piece,) = shards.read(Segment(int(groups[0]), int(rows[0]), int(rows[0]) + 1))
    return NamedImage(f"row {row}", piece.images[0] or b"")
