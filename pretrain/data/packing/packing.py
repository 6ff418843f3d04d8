"""Writes Parquet shards that are good to read in shuffled order:
small row groups, images stored as they are.

with ShardWriter("my/shards", schema_of(label=pa.string())) as writer:
    writer.write({"image": {"bytes": encoded, "path": "cats/1.jpg"}, "label": "cats"})
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import UserError
from pretrain.data.reading.footers import hugging_face_features

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
MIB = 2**20
DEFAULT_ROWS_PER_GROUP, DEFAULT_BYTES_PER_GROUP, DEFAULT_BYTES_PER_SHARD = 64, 8 * MIB, 256 * MIB


def schema_of(**columns: pa.DataType) -> pa.Schema:
    """The schema of shards: `image` first, then the named columns."""
    return pa.schema([("image", IMAGE_TYPE), *columns.items()])


class ShardWriter:
    """Rows to `shard-00000.parquet`, `shard-00001.parquet`, ... in a folder. Use as a context manager.

    In a local folder the shards appear, by rename, when the last row is written: leaving through an
    exception leaves nothing. In an object store, and with `first_shard`,
    each shard appears when it is complete.

    Image columns are marked as such for Hugging Face `datasets`.

    Args:
        dest_url: a folder, which must not hold Parquet files yet.
        schema: of the rows, see `schema_of`.
        rows_per_group, bytes_per_group: a row group holds no more of either, but at least one row. Readers
            hold whole row groups, and shuffle better the smaller they are.
        bytes_per_shard: a file ends with the row group that reaches it.
        first_shard: number of the first shard to write,
            after those with lower numbers that are there already.

    Attributes:
        num_shards: finished files, with those before `first_shard`; final once the writer is closed.
        num_rows, num_bytes: of the files that this writer finished.
    """

    def __init__(
        self,
        dest_url: str,
        schema: pa.Schema,
        rows_per_group: int = DEFAULT_ROWS_PER_GROUP,
        bytes_per_group: int = DEFAULT_BYTES_PER_GROUP,
        bytes_per_shard: int = DEFAULT_BYTES_PER_SHARD,
        first_shard: int | None = None,
    ) -> None:
        if min(rows_per_group, bytes_per_group, bytes_per_shard) < 1:
            raise ValueError("rows_per_group, bytes_per_group and bytes_per_shard must be at least 1")
        self._dest, self._schema = dest_url, _with_image_features(schema)
        self._rows_per_group, self._bytes_per_group = rows_per_group, bytes_per_group
        self._bytes_per_shard = bytes_per_shard
        self._options = _column_options(schema)
        self._rows: list[Mapping[str, Any]] = []
        self._bytes_waiting = 0
        self._waiting_shards: list[Path] = []
        self._file: Path | None = None
        self._parquet: pq.ParquetWriter | None = None
        self._at_once = first_shard is not None or not storage.is_local(dest_url)
        self._continues = first_shard is not None
        self.num_shards = first_shard or 0
        self.num_rows = self.num_bytes = 0

    def __enter__(self) -> ShardWriter:
        there = [name for name in storage.names_in(self._dest) if name.endswith(".parquet")]
        if there and not self._continues:
            raise UserError(
                f"{self._dest} already holds {there[0]}; name another folder or remove the shards first"
            )
        with storage.explained("write to", self._dest):
            if storage.is_local(self._dest):
                storage.make_dirs(self._dest)
                # in the same folder, so that a rename suffices; the leading dot hides it from readers
                self._folder = Path(tempfile.mkdtemp(prefix=".tmp-", dir=storage.local_path(self._dest)))
            else:
                self._folder = Path(tempfile.mkdtemp(prefix="fovea-shard-"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish_group()
                self._finish_shard()
                with storage.explained("write to", self._dest):
                    for shard in self._waiting_shards:
                        os.replace(shard, storage.local_path(storage.join(self._dest, shard.name)))
        finally:
            if self._parquet is not None:
                # on a full disk closing fails too, and the first error counts
                with suppress(OSError, pa.ArrowException):
                    self._parquet.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row; columns left out are null. Raises ValueError for a
        column that the schema does not have.
        """
        if unknown := row.keys() - set(self._schema.names):
            raise ValueError(f"columns {sorted(unknown)} are not in the schema {self._schema.names}")
        num_bytes = sum(map(_num_bytes, row.values()))
        if self._bytes_waiting + num_bytes > self._bytes_per_group:
            self._finish_group()
        self._rows.append(row)
        self._bytes_waiting += num_bytes
        if len(self._rows) >= self._rows_per_group or self._bytes_waiting >= self._bytes_per_group:
            self._finish_group()

    def _finish_group(self) -> None:
        if not self._rows:
            return
        table = pa.Table.from_pylist([dict(row) for row in self._rows], schema=self._schema)
        with storage.explained("write to", self._dest):
            if self._parquet is None:
                self._file = self._folder / f"shard-{self.num_shards:05d}.parquet"
                self._parquet = pq.ParquetWriter(self._file, self._schema, **self._options)
            self._parquet.write_table(table, row_group_size=table.num_rows)
            assert self._file is not None
            size = self._file.stat().st_size
        self.num_rows += table.num_rows
        self._rows, self._bytes_waiting = [], 0
        if size >= self._bytes_per_shard:
            self._finish_shard()

    def _finish_shard(self) -> None:
        if self._parquet is None or self._file is None:
            return
        with storage.explained("write to", self._dest):
            self._parquet.close()
            self._parquet = None
            with open(self._file, "rb") as written:
                os.fsync(written.fileno())
        self.num_shards += 1
        self.num_bytes += self._file.stat().st_size
        if not self._at_once:
            self._waiting_shards.append(self._file)
        else:
            storage.move_to(self._file, storage.join(self._dest, self._file.name))


def pack(rows: Iterable[Mapping[str, Any]], dest_url: str, schema: pa.Schema, **sizes: int) -> ShardWriter:
    """Writes all rows as shards; the closed writer that comes back has the counts.
    `sizes` are those of `ShardWriter`.
    """
    with ShardWriter(dest_url, schema, **sizes) as writer:
        for row in rows:
            writer.write(row)
    return writer


def _num_bytes(value: object) -> int:
    if isinstance(value, bytes | bytearray | memoryview | str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_num_bytes, value.values()))
    return 8 * len(value) if isinstance(value, list | tuple) else 8


def _with_image_features(schema: pa.Schema) -> pa.Schema:
    """The schema with image columns marked for `datasets`,
    which finds out about all other columns from their types.
    """
    features = hugging_face_features(schema)
    images = {field.name: {"_type": "Image"} for field in schema if field.type == IMAGE_TYPE}
    text = json.dumps({"info": {"features": {**images, **features}}})
    return schema.with_metadata({**(schema.metadata or {}), b"huggingface": text.encode()})


def _column_options(schema: pa.Schema) -> dict[str, Any]:
    """Encoded images are stored as they are: they do not compress, no two are equal,
    and their order means nothing.
    """
    buffer = io.BytesIO()
    pq.write_table(schema.empty_table(), buffer)
    leaves = pq.read_metadata(buffer).schema
    columns = [leaves.column(index) for index in range(len(leaves))]
    raw = [
        leaf.path
        for leaf in columns
        if leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "NONE"
    ]
    others = [leaf.path for leaf in columns if leaf.path not in raw]
    compression = {**dict.fromkeys(raw, "NONE"), **dict.fromkeys(others, "ZSTD")}
    return {
        "compression": compression,
        "use_dictionary": others or False,
        "write_statistics": others or False,
    }
