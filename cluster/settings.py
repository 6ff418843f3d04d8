"""Settings: YAML and key=value overrides are merged into a typed schema and become frozen dataclasses.

OmegaConf is met here and nowhere else. An unknown key, a wrong type or an impossible value fails at once and
names the key, the value seen and what would be right.
A schema is a tree of frozen dataclasses with fields made by `setting`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pickle
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    ConfigTypeError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
    ValidationError,
)

from cluster.errors import UserError, first_line, nearest
from cluster.renamed import is_now_called, old_names, with_new_names
from cluster.schemas import REQUIRED, check_values, fields_of, keys_of, type_name
from cluster.secrets import masked_tree
from cluster.typed_yaml import kind_of, read_mapping, read_override

Schema = TypeVar("Schema")
OF_A_RUN = "settings.yaml"  # how runs call the file that they write their settings to
CONFIGS, SHARED = "configs", "share/fovea"  # the wheel puts configs/ into the latter of an environment


def setting(
    default: Any = REQUIRED,
    *,
    help: str,
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    texts: bool = False,
) -> Any:
    """A field of a schema: its default, what it means, and the values that make sense.

    `minimum` and `maximum` may be reached, `above` and `below` not; they hold for each number of a list.
    Numbers are finite. With `texts`, what is typed without a type (`Any`) is text, whatever it looks like.
    """
    bounds = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    metadata = {"help": help, "choices": choices, "texts": texts, **bounds}
    if isinstance(default, list | dict):
        value = default
        return dataclasses.field(default_factory=lambda: type(value)(value), metadata=metadata)
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def load_settings(
    schema: type[Schema],
    config: str | None,
    overrides: Sequence[str],
    *,
    values: Mapping[str, Any] | None = None,
    beneath: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    told: Callable[[str], object] | None = None,
) -> Schema:
    """Merges schema defaults, a YAML file, `key=value` overrides and values by dotted key, in that order;
    checks everything.

    `values` are Python's own (numbers, text, lists, mappings, paths); the others are read from text.
    `beneath` gives further defaults, which depend on what was merged; the file and the overrides go before
    them. By default these are the schema's own: what its `defaults_beneath` gives, where it has one. `told`
    takes lines about what an override did beside what it says.

    Raises UserError naming the key, the value seen and the values allowed.
    """
    file = None if config is None else _read_yaml(config, schema)
    changes = [_read(override, schema) for override in overrides]
    changes += [
        _Change(key, f"{key}={masked_tree(value, key)!r}", value) for key, value in _flat(values, schema)
    ]
    for change in changes:
        _refuse_old_names(change.nested(), schema, change.said)
    tree = _layers(schema, {}, config, file, changes, told)
    beneath = beneath or getattr(schema, "defaults_beneath", None)
    if beneath is not None:
        tree = _layers(schema, beneath(tree), config, file, changes)
    return _resolved(tree, schema)


class _Change(NamedTuple):
    """One setting that is given beside the file: its dotted key, how messages call it, and its value."""

    key: str
    said: str
    value: Any

    def nested(self) -> dict[str, Any]:
        """The value beneath its key."""
        nested = self.value
        for name in reversed(self.key.split(".")):
            nested = {name: nested}
        return typing.cast(dict[str, Any], nested)

    def tree(self) -> Any:
        """The same for OmegaConf. Raises UserError for what no setting can hold."""
        try:
            return OmegaConf.create(self.nested())
        except OmegaConfBaseException as error:
            raise UserError(f"cannot read the value in {self.said!r}: {first_line(error)}") from error


def _read(override: str, schema: type) -> _Change:
    key, equals, text = override.partition("=")
    if not equals or not key.strip() or key.startswith("-"):
        raise UserError(f"{override!r} is not an override; write key=value, for example training.epochs=10")
    value: Any = read_override(key.strip(), text, schema)
    for name in key.strip().split("."):
        value = value[name]
    return _Change(key.strip(), override, value)


def _flat(values: Mapping[str, Any] | None, schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Python's values by dotted key; a mapping of a block of settings is taken apart."""
    for name, value in (values or {}).items():
        key = prefix + str(name)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(kind_of(schema, key).type):
            yield from _flat(value, schema, prefix=key + ".")
        else:
            yield key, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    # a number of numpy or torch is a number
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def settings_from(schema: type[Schema], values: Mapping[str, Any], *, where: str) -> Schema:
    """Checks plain values against a schema as `load_settings` does;
    `where` begins the messages of its UserErrors.
    """
    tree = _defaults(schema)
    _merge(tree, OmegaConf.create(dict(values)), schema, where)
    return _resolved(tree, schema, f"{where}: ")


def _resolved(tree: Any, schema: type[Schema], where: str = "") -> Schema:
    try:
        settings = OmegaConf.to_object(tree)
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None) or first_line(error)
        field = dict(fields_of(schema)).get(str(key))
        meaning = f" ({field.metadata['help']})" if field is not None and "help" in field.metadata else ""
        raise UserError(
            f"{where}the setting {key} has no value{meaning}; give it in the file or as {key}=..."
        ) from error
    except (InterpolationKeyError, UnsupportedInterpolationType, OmegaConfBaseException) as error:
        raise UserError(f"the settings do not resolve: {first_line(error)}") from error
    check_values(settings, where=where)
    return typing.cast(Schema, settings)


def _layers(
    schema: type,
    defaults: Mapping[str, Any],
    config: str | None,
    file: Any,
    changes: Sequence[_Change],
    told: Callable[[str], object] | None = None,
) -> Any:
    tree = _defaults(schema)
    tree.merge_with(defaults)
    if file is not None:
        _merge(tree, file, schema, where=str(config))
    # names first: another name takes the former one's arguments with it,
    # but not those that are given along with it
    for change in sorted(changes, key=lambda change: not change.key.endswith(".name")):
        part = change.key.partition(".")[0]
        former = _name(tree, part)
        _merge(tree, change.tree(), schema, where=change.said)
        if _name(tree, part) != former:
            if tree[part]["arguments"] and told is not None:
                gone = masked_tree(OmegaConf.to_container(tree[part]["arguments"]))
                told(f"note: {change.said} leaves out {part}.arguments={gone}, which were those of {former}")
            tree[part]["arguments"] = {}
    return tree


def _name(tree: Any, part: str) -> Any:
    """The name in a part of the settings that has a name and arguments; None for other parts."""
    if part not in tree or OmegaConf.is_interpolation(tree, part) or OmegaConf.is_missing(tree, part):
        return None
    held = tree[part]
    if not OmegaConf.is_dict(held) or not {"name", "arguments"} <= held.keys():
        return None
    return typing.cast(dict[Any, Any], OmegaConf.to_container(held))["name"]


def shipped(path: str) -> Path:
    """The file of a path that begins with `configs/`:
    what is there, else the one that came with the installed package.
    """
    here = Path(path)
    if here.exists() or here.parts[:1] != (CONFIGS,):
        return here
    tree = Path(__file__).parents[1]  # a checkout, seen from another folder
    with suppress(PackageNotFoundError):
        for file in distribution("fovea").files or []:
            if file.as_posix().endswith(f"{SHARED}/{here.as_posix()}"):
                return Path(str(file.locate()))
    return tree / here if (tree / here).exists() else here


def to_yaml(settings: Any) -> str:
    """Every resolved setting, as the YAML that goes into a run folder and loads again;
    secrets stand there as `***`.
    """
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(settings)))


def to_dict(settings: Any) -> dict[str, Any]:
    """Every resolved setting as plain dicts, lists and scalars (JSON can hold them);
    secrets stand there as `***`.
    """
    return typing.cast(dict[str, Any], masked_tree(dataclasses.asdict(settings)))


def _read_yaml(path: str, schema: type) -> Any:
    if "=" in path and not Path(path).exists():
        raise UserError(f"the first argument is the settings file, but {path!r} looks like an override")
    try:
        found = read_mapping(shipped(path).read_text(encoding="utf-8-sig"), schema, where=path)
        if Path(path).name == OF_A_RUN:
            found = with_new_names(found, keys_of(schema))
        tree = OmegaConf.create(found)
    except FileNotFoundError as error:
        beside = (
            sorted(str(p) for p in Path(path).parent.glob("*.yaml")) if Path(path).parent.is_dir() else []
        )
        raise UserError(
            f"the settings file {path} does not exist{nearest(path, beside)}"
            + (f" (there: {', '.join(beside)})" if beside else "")
        ) from error
    except IsADirectoryError as error:
        raise UserError(f"the settings file {path} is a folder; give a .yaml file") from error
    except (UnicodeDecodeError, OmegaConfBaseException, OSError, ValueError) as error:
        raise UserError(f"the settings file {path} cannot be read as YAML: {first_line(error)}") from error
    _refuse_old_names(found, schema, path)
    return tree


def _defaults(schema: type) -> Any:
    """A tree of the schema's defaults, to be merged into."""
    return pickle.loads(_pickled_defaults(schema))  # noqa: S301 - our own bytes


@functools.cache
def _pickled_defaults(schema: type) -> bytes:
    # reading a tree of settings back takes a twentieth of making it anew, or of copying it
    tree = OmegaConf.structured(schema)
    _unlock(tree)
    return pickle.dumps(tree)


def _unlock(tree: Any) -> None:
    # OmegaConf makes frozen dataclasses read-only at every level; while merging they must take values
    OmegaConf.set_readonly(tree, False)
    for key in tree:
        if not OmegaConf.is_missing(tree, key) and OmegaConf.is_dict(tree[key]):
            _unlock(tree[key])


def _merge(tree: Any, other: Any, schema: type, where: str) -> None:
    # in place: `OmegaConf.merge` copies the whole tree, node by node, for each setting that is given
    try:
        tree.merge_with(other)
    except ConfigKeyError as error:
        key = str(error.full_key or error.key)
        known = [name for name, _ in fields_of(schema)]
        hint = nearest(key, known) or nearest(
            key.rsplit(".", 1)[-1], {name.rsplit(".", 1)[-1] for name in known}
        )
        parent = key.rpartition(".")[0]
        siblings = [name for name in known if name.rpartition(".")[0] == parent]
        raise UserError(
            f"{where}: unknown setting {key!r}{hint} (known here: {', '.join(siblings)})"
        ) from error
    except (ValidationError, ConfigTypeError) as error:
        key = str(error.full_key or "")
        field = dict(fields_of(schema)).get(key)
        wanted = f"; {key} must be {type_name(field.type)}" if field is not None else ""
        value = OmegaConf.select(other, key) if key else other
        raise UserError(f"{where}: {key}={masked_tree(value, key)!r} has the wrong type{wanted}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {first_line(error)}") from error


def _refuse_old_names(settings: Mapping[str, Any], schema: type, where: str) -> None:
    for old, new in old_names(settings, keys_of(schema)):
        raise UserError(f"{where}: the setting {is_now_called(old, new)}")


def differences(old_yaml: str, settings: Any, *, ignored: Sequence[str]) -> list[str]:
    """What differs between the settings.yaml of an earlier run and these settings,
    in words (`key: old -> new`).

    `ignored` holds keys, or prefixes that end in a dot, which may differ.
    """
    before = typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(old_yaml)))
    old = flattened(masked_tree(with_new_names(before, keys_of(type(settings)))))
    new = flattened(to_dict(settings))
    return [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and not any(key == name or (name.endswith(".") and key.startswith(name)) for name in ignored)
    ]


def flattened(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Settings as plain dicts -> their values by dotted name."""
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    if not tree and prefix:
        return {prefix.rstrip("."): {}}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flattened(value, f"{prefix}{key}.")
    return flat
