"""Whole columns of a data set, without its images."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from pretrain.data.reading.footers import folder_columns
from pretrain.data.reading.manifest import Manifest


def column_by_file(manifest: Manifest, column: str) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """URL and values of each file that has rows, in the order of the row ids;
    of chosen rows only, where some are chosen.

    The values are as they are stored, numbers of classes too; a column of folder names is text.
    """
    files = np.unique(manifest.file_of_group)

    def values_of(file: int) -> tuple[str, pa.ChunkedArray]:
        groups, url = np.flatnonzero(manifest.file_of_group == file), manifest.files[file].url
        with storage.open_input(url) as source:
            numbers = manifest.group_in_file[groups].tolist()
            parquet = pq.ParquetFile(source)
            if column in parquet.schema_arrow.names:
                values = parquet.read_row_groups(numbers, columns=[column]).column(0)
            else:
                num_rows = sum(parquet.metadata.row_group(number).num_rows for number in numbers)
                values = pa.chunked_array([same_text(folder_columns(url).get(column), num_rows)])
        if manifest.all_rows_of_group is not None and manifest.choice is not None:
            lengths = manifest.all_rows_of_group[groups]
            first, last = manifest.start_of_group[groups[0]], manifest.start_of_group[groups[-1] + 1]
            begins = np.repeat(np.cumsum(lengths) - lengths, manifest.rows_of_group[groups])
            values = values.take(pa.array(manifest.choice[first:last] + begins))
        return url, values

    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(values_of, files.tolist())


def same_text(value: str | None, num: int) -> pa.Array:
    """So many times the same text, or null."""
    return pa.repeat(pa.scalar(value, pa.string()), num)
