"""The row groups of Parquet files, from their footers, with the checks of their columns."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.errors import UserError, nearest
from cluster.storage import FileInfo
from pretrain.data.reading.footers import Footer, read_footer
from pretrain.data.reading.image_paths import image_root
from pretrain.data.reading.one_schema import same_values

LOCAL_THREADS, REMOTE_THREADS = 8, 64  # a remote footer is nearly all waiting

Table = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def read_table(files: Sequence[FileInfo], columns: Sequence[str]) -> Table:
    """Reads all footers, checks the columns (images first), and gives the row-group table."""
    remote = not storage.is_local(files[0].url)
    pool = ThreadPoolExecutor(REMOTE_THREADS if remote else LOCAL_THREADS, thread_name_prefix="footer")
    groups: list[np.ndarray] = []
    first: dict[str, pa.DataType] | None = None
    try:
        # results come in the order of the files, so the first bad file by name is the one reported
        for file, (kinds, of_file) in zip(
            files, pool.map(lambda file: _of_footer(file, columns), files), strict=True
        ):
            first = first or kinds
            for column, kind in kinds.items():
                # string and large_string hold the same values; which is written depends on the writer
                form = image_kind if column == columns[0] else same_values
                if form(kind) != form(first[column]):
                    raise UserError(
                        f"column {column!r} is {first[column]} in {files[0].url} but {kind} in {file.url}; "
                        "all files of a data set need one schema"
                    )
            groups.append(of_file)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    file_of_group = np.repeat(np.arange(len(files), dtype=np.int32), [len(of_file) for of_file in groups])
    table = np.concatenate(groups)
    return file_of_group, table[:, 0].astype(np.int32), table[:, 1].copy(), table[:, 2].copy()


def _of_footer(file: FileInfo, columns: Sequence[str]) -> tuple[dict[str, pa.DataType], np.ndarray]:
    """The types of the columns, and `_groups_of`: a hundredth of the memory that the footer takes."""
    footer = read_footer(file)
    for column in columns:
        _check_column(file.url, footer.schema, column, is_image=column == columns[0])
    groups = np.array(_groups_of(file.url, footer, columns[0]), dtype=np.int64).reshape(-1, 3)
    return {column: footer.schema.field(column).type for column in columns}, groups


def _groups_of(url: str, footer: Footer, image_column: str) -> list[tuple[int, int, int]]:
    """(number, rows, compressed image bytes) of each row group that has rows."""
    metadata = footer.metadata
    if not metadata.num_row_groups:
        return []
    leaves = [metadata.row_group(0).column(index).path_in_schema for index in range(metadata.num_columns)]
    bytes_leaf = leaves.index(image_column if image_column in leaves else f"{image_column}.bytes")
    path_leaf = leaves.index(f"{image_column}.path") if f"{image_column}.path" in leaves else None
    groups, num_null, num_paths = [], 0, 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.num_rows:
            images = group.column(bytes_leaf)
            told = images.statistics if images.is_stats_set else None
            num_null += told.null_count if told is not None and told.has_null_count else 0
            if path_leaf is not None and (named := group.column(path_leaf)).is_stats_set:
                num_paths += (
                    group.num_rows - named.statistics.null_count if named.statistics.has_null_count else 0
                )
            start = images.dictionary_page_offset if images.has_dictionary_page else images.data_page_offset
            if start + images.total_compressed_size > footer.data_end:
                raise UserError(
                    f"{url} is truncated: row group {number} would reach beyond its end; copy it again"
                )
            groups.append((number, group.num_rows, images.total_compressed_size))
    if groups and num_null == metadata.num_rows and num_paths and image_root() is None:
        raise UserError(
            f"{url} holds no images but only their paths: column {leaves[bytes_leaf]!r} is null in all "
            f"{num_null} rows. data.image_root=FOLDER (--image-root FOLDER) reads them from below that "
            "folder, of absolute paths one that they begin with; or embed them where the file is written "
            "(datasets: to_parquet with Image(decode=True) stores the bytes)"
        )
    return groups


def _check_column(url: str, schema: pa.Schema, column: str, *, is_image: bool) -> None:
    names = schema.names
    if column not in names:
        what = "image column" if is_image else "column"
        raise UserError(
            f"{url} has no {what} {column!r}{nearest(column, names)} (columns there: {', '.join(names)})"
        )
    if names.count(column) > 1:
        raise UserError(f"{url} has {names.count(column)} columns named {column!r}; rename all but one")
    kind = schema.field(column).type
    if is_image and image_kind(kind) is None:
        usable = [name for name in names if image_kind(schema.field(name).type)]
        hint = f"; columns that could be: {', '.join(usable)}" if usable else ""
        raise UserError(
            f"{url}: column {column!r} is {kind}; images must be struct<bytes: binary, path: string> or "
            f"binary{hint}"
        )


def image_kind(kind: pa.DataType) -> str | None:
    """How a column of this type could hold images: `struct<bytes>`, `binary`, or None when it could not."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return "struct<bytes>" if index >= 0 and image_kind(kind.field(index).type) == "binary" else None
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return "binary" if is_binary else None
