"""Commands as functions: keyword arguments become settings or options, and a user's mistake stays one line.

The functions that the packages export (`pretrain.pretrain`, `finetune.predict`, ...) run what the commands
run. Those of the stages take settings, by short names or dotted keys;
the others take their command's options as keywords.
"""

from __future__ import annotations

import argparse
import os
import sys
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from cluster.errors import EXIT_INTERRUPTED, UserError, nearest, printable
from cluster.renamed import OPTIONS, is_now_called
from cluster.schemas import described
from cluster.secrets import masked
from cluster.settings import load_settings

Schema = TypeVar("Schema")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Lets a UserError leave as the command would print it:
    one line, without secrets, and without what raised it inside.
    """
    try:
        yield
    except UserError as error:
        error.args = (printable(masked(str(error))),)
        raise error.with_traceback(None) from None


def short_names(keywords: type) -> dict[str, str]:
    """Short name -> dotted key, of a TypedDict whose fields are `Annotated[TYPE, "dotted.key"]`."""
    hints = typing.get_type_hints(keywords, include_extras=True)
    return {name: typing.get_args(hint)[1] for name, hint in hints.items()}


def settings_of(
    function: str,
    schema: type[Schema],
    keywords: type,
    given: Mapping[str, Any],
    *,
    config: str | os.PathLike[str] | None,
    settings: Mapping[str, Any] | None,
) -> Schema:
    """The settings that a call asks for, read as a command reads its own.

    Args:
        function: its name, for messages.
        keywords: see `short_names`.
        given: the call's keyword arguments; None means that nothing was said.
        config, settings: a settings file, and values by dotted key; keyword arguments go before both.

    Raises UserError for everything wrong with them.
    """
    short = short_names(keywords)
    values = dict(settings or {})
    for name, value in given.items():
        if name not in short:
            raise UserError(
                f"{function}() takes no {name!r}{nearest(name, short)} (known: {', '.join(short)}; every "
                "other setting by its dotted key, such as settings={'training.precision': 'float32'})"
            )
        if value is not None:
            values[short[name]] = value
    return load_settings(schema, None if config is None else os.fspath(config), [], values=values, told=_say)


def ended(code: int) -> None:
    """Raises KeyboardInterrupt for the exit code of a run that was interrupted,
    so that a script or notebook ends as well.
    """
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt("interrupted; the same call continues")
    assert code == 0, code


def options_of(
    function: str, parser: argparse.ArgumentParser, positionals: list[Any], given: Mapping[str, Any]
) -> argparse.Namespace:
    """A command's options from a call: `drop_duplicates=True` is `--drop-duplicates`,
    a list gives an option several times.

    Raises UserError for a keyword that is no option, and for what the command line would refuse.
    """
    actions = {
        action.dest: action for action in parser._actions if action.option_strings and action.dest != "help"
    }
    words = []
    for name, value in given.items():
        if (new := OPTIONS.get("--" + name.replace("_", "-"))) is not None and _keyword(new) in actions:
            raise UserError(f"{function}(): {is_now_called(name, _keyword(new))}")
        if name not in actions:
            raise UserError(
                f"{function}() takes no {name!r}{nearest(name, actions)} (known: {', '.join(actions)})"
            )
        action = actions[name]
        option = action.option_strings[-1]
        if action.nargs == 0:
            if not isinstance(value, bool) and value is not None:
                raise UserError(f"{function}(): {name}={value!r} is not possible; it is True or False")
            words += [option] * bool(value)
        elif isinstance(action, argparse._AppendAction):
            several = [value] if isinstance(value, str | os.PathLike) else value or []
            words += [f"{option}={one}" for one in several]
        elif isinstance(value, list | tuple):
            words.append(f"{option}={','.join(map(str, value))}")
        elif value is not None:
            words.append(f"{option}={value}")

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{function}(): {message}")

    parser.error = refuse  # type: ignore[method-assign]
    for one in positionals:
        if not isinstance(one, str | os.PathLike):
            raise UserError(f"{function}(): {one!r} is not possible; give a path or URL")
    # behind `--` a path may begin with a dash
    return parser.parse_args([*words, "--", *map(os.fspath, positionals)])


def add_settings(parser: argparse.ArgumentParser, schema: type) -> None:
    """Adds an option for each setting of a schema: `max_images` is `--max-images`.
    `settings_given` reads them.
    """
    for one in described(schema):
        default = one.default.removeprefix("= ")
        about = f"{one.help} (default: {default})" if default != "None" else one.help
        parser.add_argument(
            option_of(one.key),
            dest=one.key,
            metavar="VALUE",
            choices=one.choices or None,
            help=about.replace("%", "%%"),
        )


def settings_given(options: argparse.Namespace, schema: type[Schema]) -> Schema:
    """The settings that the options of `add_settings` give.
    Raises UserError for a value that is not possible.
    """
    given = {one.key: getattr(options, one.key) for one in described(schema)}
    return load_settings(
        schema, None, [f"{key}={value}" for key, value in given.items() if value is not None]
    )


def option_of(key: str) -> str:
    """The option of a setting: `--max-images` of `max_images`."""
    return "--" + key.replace("_", "-")


def _keyword(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _say(line: str) -> None:
    print(line, file=sys.stdout, flush=True)
