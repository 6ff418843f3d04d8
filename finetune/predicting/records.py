"""Typed results as JSON lines and as Parquet, a part at a time, so that memory stays bounded."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage

ROWS_PER_GROUP = 1024
PREDICTIONS = "predictions"


def record_of(result: Any) -> dict[str, Any]:
    """A result (a dataclass) as JSON. Arrays are lists, their names without shapes; no maps (`_HW`)."""
    return {
        bare_name(field.name): _plain(getattr(result, field.name))
        for field in dataclasses.fields(result)
        if not is_map(field.name)
    }


def _shape(name: str) -> str:
    """The shape in a field's name: `N4` of `boxes_N4`."""
    match = re.search(r"_([A-Z][A-Z0-9]*)$", name)
    return match[1] if match else ""


def axes_of(name: str) -> int:
    """Axes of an array in a field of this name."""
    return max(1, len(_shape(name)))


def is_map(name: str) -> bool:
    """Whether a field holds a map, which is in no record."""
    return _shape(name).endswith("HW")


def bare_name(name: str) -> str:
    """A field's name in a record: without a shape."""
    shape = _shape(name)
    return name.removesuffix(f"_{shape}") if shape else name


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return record_of(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def arrow_schema(kind: type) -> pa.Schema:
    """The Arrow schema of `record_of` a result of this dataclass, by the annotations of its fields."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if not is_map(field.name)]
    return pa.schema([(bare_name(name), arrow_type(hints[name], num_axes=axes_of(name))) for name in names])


def arrow_type(hint: Any, *, num_axes: int = 1) -> pa.DataType:
    """The Arrow type of an annotation; an array is of float64 with `num_axes`."""
    simple = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
    if hint in simple:
        return simple[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (hint,) = [part for part in inner if part is not type(None)]
        return arrow_type(hint)
    if origin in (list, tuple):
        return pa.list_(arrow_type(inner[0]))
    if origin is dict:
        return pa.map_(pa.string(), arrow_type(inner[1]))
    if hint is np.ndarray:
        kind = pa.float64()
        for _ in range(num_axes):
            kind = pa.list_(kind)
        return kind
    if dataclasses.is_dataclass(hint):
        return pa.struct(list(arrow_schema(typing.cast(type, hint))))
    raise TypeError(f"no Arrow type for {hint}")


def table_of(records: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Records as a table; what a record does not have is null."""
    # pyarrow takes the pairs of a map, not a dict
    maps = [field.name for field in schema if pa.types.is_map(field.type)]
    rows = [
        row | {name: list(row[name].items()) for name in maps if row.get(name) is not None}
        for row in records
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def records_in(table: pa.Table) -> list[dict[str, Any]]:
    """What `table_of` was made of."""
    maps = [field.name for field in table.schema if pa.types.is_map(field.type)]
    return [
        row | {name: dict(row[name]) for name in maps if row[name] is not None}
        for row in table.replace_schema_metadata(None).to_pylist()
    ]


ORIGIN = pa.schema(
    [("source", pa.string()), ("index", pa.int64()), ("seconds", pa.float64()), ("error", pa.string())]
)


class RecordWriter:
    """Writes OUT/predictions.jsonl and OUT/predictions.parquet.
    Use as a context manager; OUT may be any fsspec URL.

    A record has `source`, `index`, `seconds`, `error` (of an image that cannot be decoded) and the result's
    own fields. Both files appear when all is written.
    """

    def __init__(self, out: str, result_type: type, more: pa.Schema | None = None) -> None:
        self._out = out
        self.schema = pa.schema([*ORIGIN, *arrow_schema(result_type), *(more or [])])
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
        self._table.write_table(table_of(self._rows, self.schema))
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
