"""What a schema of settings says: its fields by dotted key, the values that each may have,
and all of it in words.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from cluster.errors import UserError, nearest

REQUIRED = "???"  # OmegaConf's mark of a value that is missing


@functools.cache
def hints_of(schema: Any) -> dict[str, Any]:
    """The types of a schema's fields, which Python compiles from text each time that it is asked."""
    return typing.get_type_hints(schema)


def fields_of(schema: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every field of a schema by its dotted key."""
    hints = hints_of(schema)
    for field in dataclasses.fields(schema):
        name = prefix + field.name
        yield name, field
        if dataclasses.is_dataclass(hints[field.name]):
            yield from fields_of(hints[field.name], prefix=name + ".")


def keys_of(schema: Any) -> set[str]:
    """The dotted keys of a schema."""
    return {name for name, _ in fields_of(schema)}


def check_values(settings: Any, prefix: str = "", where: str = "") -> None:
    """Raises UserError for the first value that its field does not allow; `where` begins the message."""
    for field in dataclasses.fields(settings):
        value, key = getattr(settings, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            check_values(value, prefix=key + ".", where=where)
            continue
        choices = field.metadata.get("choices")
        if choices is not None and value not in choices:
            hint = nearest(str(value), [str(choice) for choice in choices])
            raise UserError(
                f"{where}{key}={value!r} is not possible{hint} (allowed: {', '.join(map(str, choices))})"
            )
        if field.default == REQUIRED and isinstance(value, str) and not value.strip():
            raise UserError(
                f"{where}{key}={value!r} is not possible: it must not be empty ({field.metadata['help']})"
            )
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int | float) and not isinstance(one, bool):
                wanted = _wanted(one, field.metadata)
                if wanted is not None:
                    raise UserError(f"{where}{key}={value!r} is not possible: it must be {wanted}")


# word of a bound -> what it asks of a number; by `not (a <= b)` NaN is refused as well
_BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "minimum": ("at least", lambda value, bound: value >= bound),
    "above": ("above", lambda value, bound: value > bound),
    "maximum": ("at most", lambda value, bound: value <= bound),
    "below": ("below", lambda value, bound: value < bound),
}


def _wanted(value: float, metadata: Mapping[str, Any]) -> str | None:
    """What a number must be and is not."""
    for name, (words, holds) in _BOUNDS.items():
        bound = metadata.get(name)
        if bound is not None and not holds(value, bound):
            return f"{words} {_shown(bound)}"
    return None if math.isfinite(value) else "finite"


def _range(metadata: Mapping[str, Any]) -> str:
    """The range of a setting in words."""
    bounds = [
        f"{words} {_shown(metadata[name])}"
        for name, (words, _) in _BOUNDS.items()
        if metadata[name] is not None
    ]
    return ", ".join(bounds)


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def type_name(annotation: Any) -> str:
    """The type of a field in words."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    words = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}
    plain = text.removesuffix(" | None")
    if plain.startswith("list["):
        return f"a list in brackets, [a, b], of {words.get(plain[5:-1], plain[5:-1])} each"
    if plain.startswith("dict["):
        return "a mapping in braces, {a: 1, b: 2}"
    if plain.endswith("Settings"):
        return "a block of settings, given one by one"
    return words.get(plain, plain)


class Described(NamedTuple):
    """One setting in words: its dotted key, its type, its default, what it means,
    and the values that it may have.
    """

    key: str
    kind: str
    default: str
    help: str
    possible: str
    choices: tuple[str, ...]


def described(schema: Any) -> Iterator[Described]:
    """Every setting of a schema."""
    for name, field in fields_of(schema):
        if "help" not in field.metadata:
            continue
        if field.default is not dataclasses.MISSING:
            default = "(required)" if field.default == REQUIRED else f"= {field.default}"
        else:
            assert field.default_factory is not dataclasses.MISSING
            value = field.default_factory()
            if dataclasses.is_dataclass(value):
                continue
            default = f"= {value}"
        choices = tuple(field.metadata["choices"] or ())
        possible = ", ".join(choices) or _range(field.metadata)
        yield Described(name, str(field.type), default, field.metadata["help"], possible, choices)


def describe(schema: Any) -> str:
    """Every setting with its default and meaning, for --help."""
    return "\n".join(
        f"  {one.key} {one.default}\n      {one.help}" + (f" ({one.possible})" if one.possible else "")
        for one in described(schema)
    )
