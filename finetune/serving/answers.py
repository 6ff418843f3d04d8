"""The types of what is answered, for OpenAPI: those of `predict`'s records, made of the task's result."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, create_model

from finetune.predicting.records import axes_of, bare_name, is_map


class Failure(BaseModel):
    """What every refused request is answered."""

    error: str = Field(description="why, in a line")


class ModelDescription(BaseModel):
    """What is served."""

    task: str
    names: list[str] = Field(description="classes, or keywords")
    image_size: int = Field(description="side, in pixels, at which the model looks at an image")
    channels: int
    max_megabytes: float
    max_megapixels: float
    max_images: int


class Health(BaseModel):
    """Whether requests are answered."""

    status: str = Field(description="ok, or why not")
    replicas: int = Field(description="replicas that are ready")


def answer_type(result_type: type) -> type[BaseModel]:
    """The type of an answer: `records`, in the order of the images, of a task's results."""
    origin: dict[str, Any] = {
        "source": (
            str,
            Field(description="name of the image's file or field; `body` of a body that is the image"),
        ),
        "index": (int, Field(description="number of the image in the request")),
        "seconds": (float | None, None),
        "error": (str | None, Field(description="why an image cannot be used; it then has no result")),
    }
    # one that cannot be used has none of the result's fields
    result = {name: (kind | None, None) for name, kind in _fields(result_type).items()}
    fields: dict[str, Any] = origin | result
    record: Any = create_model("Record", **fields)
    answer: type[BaseModel] = create_model("Answer", records=(list[record], ...))
    return answer


def _fields(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if not is_map(field.name)]
    return {bare_name(name): _json_type(hints[name], axes_of(name)) for name in names}


def _json_type(hint: Any, axes: int = 1) -> Any:
    """The type of `record_of` a value: an array is a list for each of its axes, a dataclass an object."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return typing.Union[tuple(_json_type(part) for part in inner)]  # noqa: UP007 - of a list that is not known before
    if origin in (list, tuple):
        return types.GenericAlias(list, (_json_type(inner[0]),))
    if origin is dict:
        return types.GenericAlias(dict, (str, _json_type(inner[1])))
    if hint is np.ndarray:
        kind: Any = float
        for _ in range(axes):
            kind = types.GenericAlias(list, (kind,))
        return kind
    if dataclasses.is_dataclass(hint):
        fields: dict[str, Any] = {
            name: (kind, ...) for name, kind in _fields(typing.cast(type, hint)).items()
        }
        return create_model(typing.cast(type, hint).__name__, **fields)
    return hint
