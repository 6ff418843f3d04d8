"""The footer of a Parquet file: one small ranged read, whatever the size of the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import UserError
from cluster.storage import FileInfo

TAIL_BYTES = 64 * 2**10  # holds the whole footer of most shards
MAGIC, MAGIC_ENCRYPTED = b"PAR1", b"PARE"
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Footer:
    """What a Parquet file says about itself, and where its data ends (the footer begins there).

    `schema` has the columns of the file and, as text behind them, those that stand in the names of its
    folders, whose values are `folder_columns`.
    """

    metadata: pq.FileMetaData
    schema: pa.Schema
    data_end: int
    folder_columns: dict[str, str | None] = field(default_factory=dict)


def read_footer(file: FileInfo, *, stopped: Callable[[], bool] = lambda: False) -> Footer:
    """Reads one file's footer; a store that fails is asked no more once `stopped` says so.

    Raises:
        UserError: naming the file, when it cannot be read, is no Parquet file, or is truncated.
    """
    size = file.size_bytes
    if size < 12:
        raise UserError(f"{file.url} is not a Parquet file: it has only {size} bytes")
    tail = bytes(storage.read_range(file, max(0, size - TAIL_BYTES), size, stopped=stopped))
    if tail[-4:] != MAGIC:
        raise UserError(f"{file.url} {_what_is_wrong(tail, bytes(storage.read_range(file, 0, 4)))}")
    footer_bytes = int.from_bytes(tail[-8:-4], "little") + 8
    if footer_bytes > size - 4:
        raise UserError(f"{file.url} is truncated or damaged: its footer would be larger than the file")
    if footer_bytes > len(tail):
        tail = bytes(storage.read_range(file, size - footer_bytes, size, stopped=stopped))
    try:
        # not by `metadata.schema`: that and the metadata hold each other, and thousands of footers would
        # wait for the collector
        parquet = pq.ParquetFile(pa.BufferReader(tail[-footer_bytes:]))
        metadata, schema = parquet.metadata, parquet.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{file.url} is damaged: its footer cannot be read ({str(error).splitlines()[0]})"
        ) from error
    in_folders = {
        name: value for name, value in folder_columns(file.url).items() if name not in schema.names
    }
    for name in in_folders:
        schema = schema.append(pa.field(name, pa.string()))
    return Footer(metadata, schema, size - footer_bytes, in_folders)


def folder_columns(url: str) -> dict[str, str | None]:
    """The columns that folders of a file stand for, as Spark, polars and duckdb part data:
    `label=cat/` is a label `cat`.
    """
    columns: dict[str, str | None] = {}
    for folder in url.partition("://")[2].split("/")[:-1] if "://" in url else url.split("/")[:-1]:
        name, is_one, value = folder.partition("=")
        if is_one and name.isidentifier():
            columns[name] = None if value == HIVE_NULL else unquote(value)
    return columns


def _what_is_wrong(tail: bytes, start: bytes) -> str:
    if tail[-4:] == MAGIC_ENCRYPTED or start == MAGIC_ENCRYPTED:
        return "is an encrypted Parquet file; encrypted files cannot be read"
    if start == MAGIC:
        return "is truncated: it begins as a Parquet file, but its end is missing; write or copy it again"
    return f"is not a Parquet file: it begins with {start!r}, not {MAGIC!r}"


def hugging_face_features(schema: pa.Schema) -> dict[str, Any]:
    """The features that `datasets` stores in a schema's metadata;
    empty when there are none or they are damaged.
    """
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(text)["info"]["features"] if text else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}
