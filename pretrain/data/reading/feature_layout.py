"""Where the features of each row of a data set lie:
a pure function of its row groups, shared by who writes and who reads.

    OUT/part-00000012-0000.parquet      features, maps, checksum, file, row_group, row and the columns kept,
        row by row
    OUT/features.json                   of what data and teacher; written last
    OUT/pooled_stats.safetensors        see `pretrain.data.reading.feature_statistics`
    OUT/map_pca.safetensors             where there are maps

A part holds neighbouring row groups of one file, or a piece of a large one
(`pretrain.data.reading.decoded.units_of`). Its own row
groups end where those of the data do, and hold at most 128 rows:
what is read for some rows is little more than they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster.batch.jobs import part_name
from pretrain.data.reading.decoded import units_of
from pretrain.data.reading.manifest import Manifest

FORMAT_VERSION = 1
DESCRIPTION, STATISTICS, COMPONENTS = "features.json", "pooled_stats.safetensors", "map_pca.safetensors"
FEATURES, MAPS, CHECKSUM = "features", "maps", "checksum"
ROWS_PER_GROUP = 128


@dataclass(frozen=True)
class Layout:
    """The row groups of all parts, F of them, in the order of the data's rows.

    Attributes:
        names: of the parts, sorted.
        part_of_group: int32 [F], index into `names`.
        group_in_part: int32 [F], number of the row group in its file.
        rows_of_group: int64 [F].
    """

    names: list[str]
    part_of_group: np.ndarray
    group_in_part: np.ndarray
    rows_of_group: np.ndarray


def layout_of(manifest: Manifest, *, rows_per_part: int) -> Layout:
    """How the features of a data set are laid out in parts of so many rows."""
    names: list[str] = []
    starts: list[int] = []  # of parts: the id of the first row
    for number, unit in enumerate(units_of(manifest, rows_per_part=rows_per_part)):
        first = int(manifest.start_of_group[unit.task[0]])
        names += [part_name(number, part) for part in range(unit.num_parts)]
        starts += [first + part * rows_per_part for part in range(unit.num_parts)]
    cuts = np.union1d(manifest.start_of_group, np.array(starts, np.int64))
    bounds = np.concatenate([_bounds(cuts), cuts[-1:]])
    part_of_group = np.searchsorted(np.array(starts), bounds[:-1], side="right") - 1
    first_of_part = np.searchsorted(part_of_group, np.arange(len(names)))
    group_in_part = np.arange(len(part_of_group)) - first_of_part[part_of_group]
    return Layout(names, part_of_group.astype(np.int32), group_in_part.astype(np.int32), np.diff(bounds))


def row_groups_of(part: pa.Table) -> list[int]:
    """Rows of each row group of a part's file, as `layout_of` has them, from its column `row_group`."""
    groups = part["row_group"].to_numpy()
    cuts = np.concatenate([[0], np.flatnonzero(np.diff(groups)) + 1, [len(groups)]]).astype(np.int64)
    return np.diff(np.concatenate([_bounds(cuts), cuts[-1:]])).tolist() if len(groups) else []


def _bounds(cuts: np.ndarray) -> np.ndarray:
    """Where row groups begin between rising cuts: at each, and every 128 rows after it."""
    counts = -(-np.diff(cuts) // ROWS_PER_GROUP)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(cuts[:-1], counts) + ROWS_PER_GROUP * within


def column_type(width: int) -> pa.DataType:
    """The type of a column of so many numbers a row."""
    return pa.list_(pa.float16(), width)


def as_column(values_BN: np.ndarray, good_B: np.ndarray) -> pa.Array:
    """float16 [good rows, N] as a column with null for the other rows, bool [B]."""
    width = values_BN.shape[1]
    flat_BN = np.zeros((len(good_B), width), np.float16)
    flat_BN[good_B] = values_BN
    return pa.FixedSizeListArray.from_arrays(pa.array(flat_BN.reshape(-1)), width, mask=pa.array(~good_B))


def as_rows(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """A column as float16 [B, N] without a copy, and which rows have values, bool [B]."""
    width, values = column.type.list_size, column.values
    good_B = (
        np.ones(len(column), bool)
        if not column.null_count
        else column.is_valid().to_numpy(zero_copy_only=False)
    )
    # not by `to_numpy`: within null rows all numbers are null
    flat = np.frombuffer(
        values.buffers()[1], np.float16, len(column) * width, 2 * (values.offset + column.offset * width)
    )
    return flat.reshape(len(column), width), good_B
