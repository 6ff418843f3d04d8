"""Typed results as JSON lines and as Parquet, a part at a time, so that memory stays bounded."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import types
import typing
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage

ROWS_PER_GROUP = 1024
PREDICTIONS = "predictions"


def record_of(result: Any) -> dict[str, Any]:
    """A result (a dataclass) as JSON; maps and other arrays are left out, they are pictures."""
    fields = ((field.name, getattr(result, field.name)) for field in dataclasses.fields(result))
    return {name: _plain(value) for name, value in fields if not _is_array(value)}


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or type(value).__module__.partition(".")[0] == "torch"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return record_of(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def arrow_schema(kind: type) -> pa.Schema:
    """The Arrow schema of `record_of` a result of this dataclass, by the annotations of its fields."""
    hints = typing.get_type_hints(kind)
    found = ((field.name, arrow_type(hints[field.name])) for field in dataclasses.fields(kind))
    return pa.schema([(name, type_) for name, type_ in found if type_ is not None])


def arrow_type(hint: Any) -> pa.DataType | None:
    """The Arrow type of an annotation; None for arrays and what holds them."""
    simple = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
    if hint in simple:
        return simple[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (hint,) = [part for part in inner if part is not type(None)]
        return arrow_type(hint)
    if origin in (list, tuple):
        item = arrow_type(inner[0])
        return None if item is None else pa.list_(item)
    if origin is dict:
        item = arrow_type(inner[1])
        return None if item is None else pa.map_(pa.string(), item)
    if dataclasses.is_dataclass(hint):
        return pa.struct(list(arrow_schema(typing.cast(type, hint))))
    return None


PLACE = pa.schema([("source", pa.string()), ("index", pa.int64()), ("seconds", pa.float64()), ("error", pa.string())])


class RecordWriter:
    """Writes OUT/predictions.jsonl and OUT/predictions.parquet. Use as a context manager; OUT may be any fsspec URL.

    A record has `source`, `index`, `seconds`, `error` (of a picture that cannot be decoded) and the result's own fields.
    Both files appear when all is written.
    """

    def __init__(self, out: str, result_type: type, more: pa.Schema | None = None) -> None:
        self._out = out
        self.schema = pa.schema([*PLACE, *arrow_schema(result_type), *(more or [])])
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="fovea-predict-")
        folder = Path(self._folder.name)
        self._files = folder / f"{PREDICTIONS}.jsonl", folder / f"{PREDICTIONS}.parquet"
        self._lines = self._files[0].open("w", encoding="utf-8")
        self._table = pq.ParquetWriter(self._files[1], self.schema)
        return self

    def write(self, record: dict[str, Any]) -> None:
        """Adds a record."""
        self._lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._rows.append(record)
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        # pyarrow takes the pairs of a map, not a dict
        maps = [field.name for field in self.schema if pa.types.is_map(field.type)]
        rows = [
            row | {name: list(row[name].items()) for name in maps if row.get(name) is not None} for row in self._rows
        ]
        self._table.write_table(pa.Table.from_pylist(rows, schema=self.schema))
        self._rows = []

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._rows and kind is None:
            self._flush()
        self._lines.close()
        self._table.close()
        if kind is None:
            for file in self._files:
                storage.upload(file, storage.join(self._out, file.name))
        self._folder.cleanup()
