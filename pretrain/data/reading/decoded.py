"""A data set as units of a batch job: row groups read, decoded and cropped on CPUs,
for any job that computes on the images.

Embedding and prediction over whole data sets share this. A table has the rows of one part of the result:

    pixels      fixed_size_binary, uint8 [C, size, size] of each image (`pixels_of` gives the array), null
        where it is bad
    geometry    float32 [V * 5] of each image, where its transform has one (`geometry_of` gives the array)
    checksum    uint32, `image_checksum` of the encoded image, where bad rows are asked for
    file, row_group, row    where the image lies
    and the columns to keep, as they are
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.batch.jobs import Unit, with_notes
from cluster.errors import UserError, nearest
from pretrain.data.images.decode import max_pixels_now, set_max_pixels
from pretrain.data.reading import image_paths
from pretrain.data.reading.footers import read_footer
from pretrain.data.reading.in_sequence import batches_in_sequence
from pretrain.data.reading.loader import Batch, Filling, HostTransform
from pretrain.data.reading.manifest import Manifest
from pretrain.data.reading.shards import Shards

ROWS_PER_PART = 512  # 74 MiB of decoded images at 224 pixels, 0.8 MB of features with 384 dimensions
LOCATION = ("file", "row_group", "row")


def units_of(manifest: Manifest, *, rows_per_part: int = ROWS_PER_PART) -> list[Unit]:
    """Neighbouring row groups of a file, as many as make up a part, or one large one that makes up several.

    A unit's task is the range of its row groups in the manifest.
    """
    units: list[Unit] = []
    first, rows = 0, 0
    num_groups = len(manifest.rows_of_group)
    for group in range(num_groups):
        rows += int(manifest.rows_of_group[group])
        last = group + 1 == num_groups
        other_file = not last and manifest.file_of_group[group + 1] != manifest.file_of_group[group]
        if last or other_file or rows + int(manifest.rows_of_group[group + 1]) > rows_per_part:
            units.append(Unit([first, group + 1], -(-rows // rows_per_part)))
            first, rows = group + 1, 0
    return units


def columns_to_keep(manifest: Manifest, image_column: str, asked: Sequence[str] | None) -> list[str]:
    """The columns that go along: those asked for, or all that are no images and not nested,
    and the images' paths.

    Raises UserError for one that is not there.
    """
    schema = read_footer(manifest.files[0]).schema
    image = schema.field(image_column).type
    path = f"{image_column}.path"
    has_path = pa.types.is_struct(image) and image.get_field_index("path") >= 0
    known = [name for name in schema.names if name != image_column] + [path] * has_path
    if asked is not None:
        for name in asked:
            if name not in known:
                raise UserError(
                    f"no column {name!r} to keep{nearest(name, known)} (columns: {', '.join(known)})"
                )
        return list(asked)
    small = [
        name
        for name in schema.names
        if name != image_column
        and not pa.types.is_nested(schema.field(name).type)
        and not pa.types.is_binary(schema.field(name).type)
        and not pa.types.is_large_binary(schema.field(name).type)
    ]
    return [*small, *[path] * has_path]


@dataclass(frozen=True)
class DecodedRows:
    """Gives the function that makes tables of a unit; sent to each process that reads.

    Args:
        manifest: of the whole data set.
        image_column, keep: columns, see `columns_to_keep`.
        transform: what is made of each image.
        decode_threads: of a process.
        rows_per_part: rows of a table.
        max_pixels: of an image; by default what this process allows.
        image_root: folder of images that are named by paths; by default that of this process.
        with_bad: leaves rows that cannot be decoded in, null in `pixels`,
            so that a unit has as many rows as its row groups.
    """

    manifest: Manifest
    image_column: str
    keep: Sequence[str]
    transform: HostTransform
    decode_threads: int = 1
    rows_per_part: int = ROWS_PER_PART
    with_bad: bool = False
    max_pixels: int = dataclasses.field(default_factory=max_pixels_now)
    image_root: str | None = dataclasses.field(default_factory=image_paths.image_root)

    def __call__(self) -> Callable[[Sequence[int]], Iterator[pa.Table]]:
        """The function; nothing is to be loaded for it."""
        set_max_pixels(self.max_pixels)
        image_paths.use_image_root(self.image_root)
        return self._tables

    def _tables(self, task: Sequence[int]) -> Iterator[pa.Table]:
        """The tables of row groups [first, last) of the manifest; bad rows are noted."""
        part = _groups(self.manifest, *task)
        shards = Shards(part, image_column=self.image_column, columns=self.keep, as_stored=True)
        schema = read_footer(part.files[0]).schema
        for batch in batches_in_sequence(
            shards,
            WithChecksums(self.transform) if self.with_bad else self.transform,
            batch_size=self.rows_per_part,
            decode_threads=self.decode_threads,
            with_bad=self.with_bad,
        ):
            yield self._table(batch, shards, schema)

    def _table(self, batch: Batch, shards: Shards, schema: pa.Schema) -> pa.Table:
        pixels = np.ascontiguousarray(batch.arrays[0])
        kind = pa.binary(int(np.prod(pixels.shape[1:])))
        locations = [shards.location(int(row_id)) for row_id in batch.row_ids]
        valid = None
        if self.with_bad and batch.bad_rows:
            good = ~np.isin(batch.row_ids, [bad.row_id for bad in batch.bad_rows])
            valid = pa.py_buffer(np.packbits(good, bitorder="little"))
        columns = {
            "pixels": pa.FixedSizeBinaryArray.from_buffers(kind, len(pixels), [valid, pa.py_buffer(pixels)]),
            "file": pa.array([location.file for location in locations], pa.string()),
            "row_group": pa.array([location.row_group for location in locations], pa.int32()),
            "row": pa.array([location.row for location in locations], pa.int64()),
        }
        if self.with_bad:
            columns["checksum"] = pa.array(batch.arrays[-1])
        if batch.geometry_VB5 is not None:
            flat_BG = np.ascontiguousarray(batch.geometry_VB5.transpose(1, 0, 2)).reshape(len(pixels), -1)
            columns["geometry"] = pa.FixedSizeListArray.from_arrays(
                pa.array(flat_BG.reshape(-1)), flat_BG.shape[1]
            )
        for name in self.keep:
            column, _, inner = name.partition(".")
            kind = (
                schema.field(name).type
                if name in schema.names
                else schema.field(column).type.field(inner).type
            )
            columns[name] = pa.array(batch.columns[name], kind)
        bad = [(shards.location(row.row_id), row.reason) for row in batch.bad_rows]
        return with_notes(
            pa.table(columns), [{**dataclasses.asdict(location), "reason": why} for location, why in bad]
        )


def image_checksum(data: Any) -> int:
    """Tells encoded images apart by their length, beginning, middle and end, in 32 bits; 0 for null.

    Of a file in which rows changed locations no fingerprint of names and sizes would know.
    """
    if data is None:
        return 0
    middle = len(data) // 2
    parts = (data[:64], data[middle : middle + 256], data[-64:])
    return zlib.crc32(b"".join([len(data).to_bytes(8, "little"), *parts]))


class WithChecksums:
    """A host transform whose last array is `image_checksum` of each image, uint32 [B]."""

    def __init__(self, transform: HostTransform) -> None:
        self._transform = transform

    def begin(self, passes: np.ndarray, row_ids: np.ndarray) -> _FillingWithChecksums:
        """Makes room for a batch."""
        return _FillingWithChecksums(self._transform.begin(passes, row_ids), len(row_ids))


class _FillingWithChecksums:
    def __init__(self, filling: Filling, num: int) -> None:
        self._filling = filling
        self.arrays = [*filling.arrays, np.zeros(num, np.uint32)]
        self.parameters, self.geometry_VB5 = filling.parameters, filling.geometry_VB5

    def fill(self, index: int, data: Any) -> None:
        self.arrays[-1][index] = image_checksum(data)
        self._filling.fill(index, data)


def pixels_of(table: pa.Table, *, size: int, channels: int) -> np.ndarray:
    """The images of a table, uint8 [B, C, size, size], without a copy where it lies in one piece."""
    column = table["pixels"].combine_chunks()
    chunk = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    width = channels * size * size
    flat = np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * width, chunk.offset * width)
    return flat.reshape(len(chunk), channels, size, size)


def geometry_of(table: pa.Table) -> np.ndarray | None:
    """The geometry of a table's images, float32 [V, B, 5], if there is one."""
    if "geometry" not in table.column_names:
        return None
    flat = table["geometry"].combine_chunks().flatten().to_numpy()
    return flat.reshape(table.num_rows, -1, 5).transpose(1, 0, 2)


def _groups(manifest: Manifest, first: int, last: int) -> Manifest:
    """The part of a manifest with row groups [first, last), which lie in one file."""
    of_group = {
        name: getattr(manifest, name)[first:last]
        for name in ("group_in_file", "rows_of_group", "bytes_of_group", "source_of_group")
    }
    file = int(manifest.file_of_group[first])
    assert (manifest.file_of_group[first:last] == file).all()
    return dataclasses.replace(
        manifest, files=(manifest.files[file],), file_of_group=np.zeros(last - first, np.int32), **of_group
    )
