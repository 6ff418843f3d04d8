"""Every number that the commands can be told has a range,
which is refused beyond its edges and shown by --help.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

import pytest

from cluster.errors import UserError
from cluster.jobs.pipeline.settings import PipelineSettings, StageSettings
from cluster.schemas import describe
from cluster.settings import load_settings
from finetune.settings import FinetuneSettings
from pretrain.settings import PretrainSettings

SCHEMAS: dict[type, list[str]] = {
    PretrainSettings: ["out=o", "data.url=d"],
    FinetuneSettings: ["out=o", "data.url=d", "encoder=random", "validation_url=v"],
    PipelineSettings: ["out=o"],
    StageSettings: ["run=r"],
}


def numbers_of(schema: type, prefix: str = "") -> list[tuple[str, str, dataclasses.Field[Any]]]:
    """(dotted name, `int` or `float`, field) of every setting that is a number or a list of numbers."""
    found = []
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            found += numbers_of(kind, f"{prefix}{field.name}.")
        elif kind is not bool and any(word in str(field.type) for word in ("int", "float")):
            found.append((prefix + field.name, "int" if "int" in str(field.type) else "float", field))
    return found


SETTINGS = [
    pytest.param(schema, name, kind, field, id=f"{schema.__name__}.{name}")
    for schema in SCHEMAS
    for name, kind, field in numbers_of(schema)
]


def load(schema: type, name: str, value: Any, field: dataclasses.Field[Any]) -> Any:
    text = f"[{value}]" if "list" in str(field.type) else str(value)
    given = [*SCHEMAS[schema], f"{name}={text}"]
    if name == "summarization.width":
        given.append("summarization.num_heads=1")
    settings = load_settings(schema, None, given)
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings[0] if isinstance(settings, list) else settings


@pytest.mark.parametrize(("schema", "name", "kind", "field"), SETTINGS)
def test_the_edges_of_every_number(
    schema: type, name: str, kind: str, field: dataclasses.Field[Any]
) -> None:
    bounds = {key: field.metadata[key] for key in ("minimum", "above", "maximum", "below")}
    assert bounds["minimum"] is not None or bounds["above"] is not None, (
        "what is the least that makes sense?"
    )
    for bad in ("nan", "inf", "-inf"):
        with pytest.raises(UserError, match=name):
            load(schema, name, bad, field)
    step = 1 if kind == "int" else 1e-9
    for key, sign, reached in (
        ("minimum", -1, True),
        ("above", -1, False),
        ("maximum", 1, True),
        ("below", 1, False),
    ):
        edge = bounds[key]
        if edge is None:
            continue
        if reached and (schema, name) not in CROSSED:
            assert math.isclose(load(schema, name, edge, field), edge)
        with pytest.raises(UserError, match=name):
            load(
                schema,
                name,
                edge + sign * step * max(1, abs(edge) if kind == "float" else 1) if reached else edge,
                field,
            )


# their edges contradict the defaults of other settings
CROSSED = {
    (FinetuneSettings, "detection.max_scale"),
    (FinetuneSettings, "training.epochs"),
    (PretrainSettings, "training.epochs"),
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_help_shows_every_range(schema: type) -> None:
    lines = describe(schema).splitlines()
    for name, _, field in numbers_of(schema):
        (at,) = [number for number, line in enumerate(lines) if line.startswith(f"  {name} ")]
        for key, word in (
            ("minimum", "at least"),
            ("above", "above"),
            ("maximum", "at most"),
            ("below", "below"),
        ):
            if field.metadata[key] is not None:
                assert f"{word} {field.metadata[key]}" in lines[at + 1], lines[at + 1]
