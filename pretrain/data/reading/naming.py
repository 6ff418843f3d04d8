"""Numbers that stand for names, read as the names:
Hugging Face's ClassLabel, in a column, in lists or in objects.

Two files of one data set may number the same classes differently, so that a number means nothing outside of
its file. Whoever reads a column gets text; -1, which `datasets` has for a row without a label, is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import UserError
from pretrain.data.reading.footers import hugging_face_features

NO_LABEL = -1

# class names by number; or, of a column of objects, what stands for names in each of its fields
Names = tuple[str, ...] | Mapping[str, Any]


def names_in(schema: pa.Schema, column: str) -> Names | None:
    """The names that numbers of a column stand for; None where they stand for themselves."""
    return _all_names((schema.metadata or {}).get(b"huggingface", b"")).get(column)


def names_at(schema: pa.Schema, *path: str) -> tuple[str, ...] | None:
    """The class names at a location such as ("label",) or ("objects", "category"), in lists or not;
    None without names.
    """
    found: Any = names_in(schema, path[0])
    for name in path[1:]:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, tuple) else None


def named(value: Any, names: Names | None) -> Any:
    """A value as `to_pylist` gives it with names in place of numbers; a number that has none stays one."""
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [named(entry, names) for entry in value]
    if isinstance(names, tuple):
        if type(value) is not int:
            return value
        return None if value == NO_LABEL else names[value] if 0 <= value < len(names) else value
    if isinstance(value, dict):
        return {field: named(entry, names.get(field)) for field, entry in value.items()}
    return value


def named_array(numbers: pa.Array, names: tuple[str, ...], location: str) -> pa.Array:
    """Whole numbers as a dictionary of names. Raises UserError, which begins with `location`,
    for one without a name.
    """
    numbers = numbers.cast(pa.int64())
    known = pc.if_else(pc.equal(numbers, NO_LABEL), pa.scalar(None, numbers.type), numbers)
    ends = pc.min_max(known).as_py()
    for end in (ends["min"], ends["max"]):
        if end is not None and not 0 <= end < len(names):
            raise UserError(
                f"{location} holds the number {end}, but names {len(names)} classes: {', '.join(names[:8])}"
            )
    return pa.DictionaryArray.from_arrays(known.cast(pa.int32()), pa.array(names, pa.string()))


@lru_cache(256)
def _all_names(metadata: bytes) -> dict[str, Names]:
    """Column -> names, of all columns whose features in a schema's metadata have some."""
    if not metadata:
        return {}
    features = hugging_face_features(pa.schema([]).with_metadata({b"huggingface": metadata}))
    found = {name: _names_of(feature) for name, feature in features.items()}
    return {name: names for name, names in found.items() if names is not None}


def _names_of(feature: Any) -> Names | None:
    feature = _without_lists(feature)
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel":
        names = feature.get("names")
        return tuple(map(str, names)) if isinstance(names, list) and names else None
    if isinstance(feature.get("_type"), str):  # a Value, an Image, ...
        return None
    inner = {name: names for name, one in feature.items() if (names := _names_of(one)) is not None}
    return inner or None


def _without_lists(feature: Any) -> Any:
    """What list features hold: [x] and {"_type": "Sequence"} of older versions, {"_type":
    "List"} of newer ones.
    """
    while True:
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif isinstance(feature, dict) and isinstance(feature.get("_type"), str) and "feature" in feature:
            feature = feature["feature"]
        else:
            return feature
