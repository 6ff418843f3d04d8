"""YAML and `key=value` read by the types of a schema: what is typed is what comes out.

A text stays what it is (`007`, `1.10`, `yes`, `12:30:00`), a whole number is decimal, and a list or mapping
is parsed only where one is expected. Where the schema has no type (arguments of a network), plain words
follow the core schema of YAML 1.2: `true`, `null`, `3`, `1e-3`, and all else is text. What cannot be
converted is left for the schema to refuse.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from cluster.errors import UserError
from cluster.schemas import hints_of
from cluster.secrets import is_secret_name

_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,99})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


NO_TEXTS, TEXT, TEXTS = range(3)


class Kind(NamedTuple):
    """What a value should be: a type of the schema, and whether it may be null.

    `texts` says which plain words without a type are texts:
    none, the value itself, or those in its lists, too.
    """

    type: Any = Any
    optional: bool = True
    texts: int = NO_TEXTS


ANY = Kind()


def read_mapping(text: str, schema: type, *, where: str) -> dict[str, Any]:
    """The settings of a YAML file as plain values; `where` names it in messages.

    A block without lines is empty, and `a.b: 1` means what it means as `a.b=1`.

    Raises UserError with line, column and cause for what is no YAML, for a key that is there twice, and
    where the file holds something else than keys.
    """
    node = _composed(text, where)
    if node is None or (isinstance(node, ScalarNode) and node.style is None and node.value in _NULLS):
        return {}
    if not isinstance(node, MappingNode):
        raise UserError(f"the settings file {where} must hold `key: value` lines")
    return dict(_of_node(node, Kind(schema, False), where))


def read_override(key: str, text: str, schema: type) -> dict[str, Any]:
    """`key=text` as nested plain values. Raises UserError where a list or mapping is begun and is none."""
    kind = kind_of(schema, key)
    value: Any = _of_words(key, text, kind)
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


def read_words(overrides: Sequence[str]) -> dict[str, Any]:
    """`key=text` words as nested plain values, where there is no schema.
    Raises UserError for what is none.
    """
    found: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip() or key.startswith("-"):
            raise UserError(f"{override!r} is not KEY=VALUE, such as strength=0.5")
        value: Any = _of_words(key, text, ANY)
        for name in reversed(key.strip().split(".")):
            value = {name: value}
        found = _joined(found, value)
    return found


def kind_of(schema: type, key: str) -> Kind:
    """What the value of a dotted key should be."""
    kind = Kind(schema, False)
    for name in key.split("."):
        kind = _inner(kind, name)
    return kind


def _inner(kind: Kind, name: str) -> Kind:
    """What the value beneath a name should be."""
    if dataclasses.is_dataclass(kind.type):
        fields = {field.name: field for field in dataclasses.fields(kind.type)}
        if name not in fields:
            return ANY
        texts = TEXTS if fields[name].metadata.get("texts") else NO_TEXTS
        return _kind(hints_of(typing.cast(type, kind.type))[name], texts)
    if typing.get_origin(kind.type) is dict:
        inner = _kind(typing.get_args(kind.type)[1], min(kind.texts, TEXT))
    else:
        inner = ANY
    # a key of a store is a text, whatever it looks like
    return Kind(str) if inner.type is Any and is_secret_name(name) else inner


def _kind(annotation: Any, texts: int) -> Kind:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        inner = [one for one in typing.get_args(annotation) if one is not type(None)]
        return Kind(inner[0] if len(inner) == 1 else Any, True, texts)
    return Kind(annotation, annotation is Any, texts)


def _composed(text: str, where: str) -> Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        location = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        hint = "; YAML is indented by spaces, not by tabs" if "\\t" in str(error.problem) else ""
        raise UserError(
            f"{where}{location} cannot be read as YAML: {error.problem or error.context}{hint}"
        ) from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise UserError(
            f"{where}, line {line}, column {column} cannot be read as YAML: the character "
            f"{error.character!r} is not allowed"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{where} cannot be read as YAML: {str(error).splitlines()[0]}") from error


def _of_words(key: str, text: str, kind: Kind) -> Any:
    stripped = text.strip()
    quoted = _unquoted(stripped)
    if kind.type is str or (kind.texts and stripped[:1] not in ("[", "{")):
        if quoted is not None:
            return quoted
        if not stripped or (kind.optional and stripped in _NULLS):
            return None
        return text
    if quoted is not None:
        return _of_scalar(quoted, kind) if kind.type in (int, float, bool) else quoted
    if stripped[:1] in ("[", "{") and kind.type not in (int, float, bool):
        node = _composed(stripped, f"cannot read the value in {f'{key}={text}'!r}: its YAML")
        return None if node is None else _of_node(node, kind, f"{key}={text}")
    return _of_scalar(stripped, kind)


def _unquoted(text: str) -> str | None:
    """What stands in the quotes that begin and end a text; None where there are none."""
    if len(text) < 2 or text[0] not in "'\"" or text[-1] != text[0]:
        return None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    return str(node.value) if isinstance(node, ScalarNode) and node.style in ("'", '"') else None


def _of_node(node: Node, kind: Kind, where: str) -> Any:
    if isinstance(node, MappingNode):
        return _of_mapping(node, kind, where)
    if isinstance(node, SequenceNode):
        arguments = typing.get_args(kind.type) if typing.get_origin(kind.type) is list else ()
        texts = kind.texts if kind.texts == TEXTS else NO_TEXTS
        inner = _kind(arguments[0], texts) if arguments else Kind(Any, True, texts)
        return [_of_node(item, inner, where) for item in node.value]
    assert isinstance(node, ScalarNode)
    if node.style is not None:
        return _of_scalar(node.value, kind) if kind.type in (int, float, bool) else node.value
    if dataclasses.is_dataclass(kind.type) and node.value in _NULLS:
        return {}  # a block whose lines are all comments
    if kind.type is str or kind.texts:
        return None if node.value in _NULLS else node.value
    return _of_scalar(node.value, kind)


def _of_mapping(node: MappingNode, kind: Kind, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    taken_over: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
        if not isinstance(key_node, ScalarNode):
            raise UserError(
                f"{where}, line {line}, column {column}: a key must be a word, not a list or mapping"
            )
        key = str(key_node.value)
        if key == "<<" and key_node.style is None:  # `<<: *name` takes over the keys of another mapping
            others = value_node.value if isinstance(value_node, SequenceNode) else [value_node]
            merged = [_of_node(other, kind, where) for other in others]
            for other in reversed(merged):
                if not isinstance(other, dict):
                    raise UserError(
                        f"{where}, line {line}, column {column}: << takes over a mapping, not {other!r}"
                    )
                taken_over = _joined(taken_over, other)
            continue
        if ":" in key and key_node.style is None and isinstance(value_node, ScalarNode) and node.flow_style:
            name, _, value = key.partition(":")
            if value_node.value == "" and value_node.style is None:
                raise UserError(
                    f"{where}: {key!r} has no value; write a space after the colon: {name}: {value}"
                )
        if key in lines:
            raise UserError(
                f"{where}, line {line}, column {column}: the key {key!r} appears twice (first in line "
                f"{lines[key]})"
            )
        lines[key] = line
        names = key.split(".") if dataclasses.is_dataclass(kind.type) and key_node.style is None else [key]
        inner = kind
        for name in names:
            inner = _inner(inner, name)
        held: Any = _of_node(value_node, inner, where)
        for name in reversed(names):
            held = {name: held}
        clash = _clash(found, held)
        if clash is not None:
            raise UserError(f"{where}, line {line}, column {column}: {clash} appears twice")
        found = _joined(found, held)
    return _joined(taken_over, found)


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Both, the second before the first; mappings in both are joined likewise."""
    joined = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(joined.get(key), dict)
        joined[key] = _joined(joined[key], value) if both else value
    return joined


def _clash(first: dict[str, Any], second: dict[str, Any], prefix: str = "") -> str | None:
    """The key that both give a value."""
    for key, value in second.items():
        if key in first:
            if not (isinstance(value, dict) and isinstance(first[key], dict)):
                return f"the value of {prefix + key!r}"
            clash = _clash(first[key], value, f"{prefix}{key}.")
            if clash is not None:
                return clash
    return None


def _of_scalar(text: str, kind: Kind) -> Any:
    if text in _NULLS:
        return None
    if kind.type is str or kind.texts:
        return text
    if kind.type is bool and text.lower() in _BOOLS:
        return _BOOLS[text.lower()]
    if kind.type is int and re.fullmatch(r"[-+]?[0-9][0-9_]{0,99}", text):
        return int(text.replace("_", ""))
    if kind.type is float and _SPECIAL.fullmatch(text) is None:
        try:
            return float(text)
        except ValueError:
            return text
    return core(text)


def core(text: str) -> Any:
    """A plain word as the core schema of YAML 1.2 has it, without octal and hexadecimal numbers."""
    if text in _NULLS:
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", "").lower())
    return text
