"""One schema for files that hold the same values in several Arrow types,
or number their classes differently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pretrain.data.reading.footers import hugging_face_features
from pretrain.data.reading.naming import Names, names_in

TEXT_FEATURE = {"dtype": "string", "_type": "Value"}


def same_values(kind: pa.DataType) -> str:
    """A text that is equal for types which hold the same values:
    views, dictionaries, large ones, integers of any width.
    """
    if pa.types.is_dictionary(kind):
        return same_values(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "binary"
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_floating(kind):
        return "float"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(sorted(f'{field.name}: {same_values(field.type)}' for field in kind))}>"
    if hasattr(kind, "value_type") and not pa.types.is_map(kind):
        return f"list<{same_values(kind.value_type)}>"
    return str(kind)


def common_type(kinds: Sequence[pa.DataType]) -> pa.DataType:
    """A plain type that holds the values of all these, which `same_values` calls the same;
    of equal ones that type.
    """
    if len(set(kinds)) == 1:
        return kinds[0]
    kinds = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in kinds]
    first = kinds[0]
    if len(set(kinds)) == 1:
        return first
    if pa.types.is_string(first) or pa.types.is_large_string(first) or pa.types.is_string_view(first):
        return pa.large_string() if pa.large_string() in kinds else pa.string()
    if pa.types.is_integer(first):
        return pa.int64()
    if pa.types.is_floating(first):
        return pa.float64()
    if pa.types.is_struct(first):
        return pa.struct(
            [(field.name, common_type([kind.field(field.name).type for kind in kinds])) for field in first]
        )
    if hasattr(first, "value_type"):
        return pa.list_(common_type([kind.value_type for kind in kinds]))
    return pa.large_binary() if pa.large_binary() in kinds else pa.binary()


def with_names_as_text(schema: pa.Schema, column: str) -> pa.Schema:
    """The schema with text in place of the numbers of a column that stand for names,
    in its type and its features.
    """
    names = names_in(schema, column)
    if names is None:
        return schema
    index = schema.get_field_index(column)
    features = hugging_face_features(schema)
    features[column] = _text_features(features[column])
    metadata = {**schema.metadata, b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    kind = _text_type(schema.field(index).type, names)
    return schema.set(index, schema.field(index).with_type(kind)).with_metadata(metadata)


def _text_type(kind: pa.DataType, names: Names | None) -> pa.DataType:
    if names is None:
        return kind
    if pa.types.is_struct(kind) and isinstance(names, Mapping):
        return pa.struct([field.with_type(_text_type(field.type, names.get(field.name))) for field in kind])
    if hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):
        return pa.list_(_text_type(kind.value_type, names))
    return pa.string() if isinstance(names, tuple) else kind


def _text_features(feature: Any) -> Any:
    if isinstance(feature, list):
        return [_text_features(one) for one in feature]
    if isinstance(feature, dict):
        if feature.get("_type") == "ClassLabel":
            return TEXT_FEATURE
        return {name: _text_features(one) for name, one in feature.items()}
    return feature
