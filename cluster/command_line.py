"""The one builder of command lines: an option can be written `--name value` or `name=value`,
and so can a setting.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple, cast

from cluster.errors import UserError
from cluster.renamed import OPTIONS, is_now_called


class Command(NamedTuple):
    """A command: what it is for, in a line, and its module with `parser()` and `main(arguments)`,
    imported when needed.
    """

    summary: str
    module: str

    def main(self, arguments: Sequence[str]) -> int:
        """Runs it; returns the exit code."""
        return int(import_module(self.module).main(arguments) or 0)

    def parser(self) -> argparse.ArgumentParser:
        """What reads its arguments."""
        return cast(argparse.ArgumentParser, import_module(self.module).parser())


class CommandLine(argparse.ArgumentParser):
    """Reads the options of a command. What stands behind `--` is left as it is;
    a former name is refused with the new one.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See argparse."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([*self._as_options(words[:end]), *words[end:]], namespace)

    def _as_options(self, words: list[str]) -> Iterator[str]:
        takes_next = False
        for word in words:
            name, equals, value = word.partition("=")
            is_option = name.startswith("--")
            option = name if is_option else f"--{name.replace('_', '-')}"
            action = self._option_string_actions.get(option)
            if takes_next:
                takes_next = False
                yield word
            elif action is None or is_option or not equals:
                if action is None and (is_option or equals):
                    self._refuse_old(option, name)
                takes_next = is_option and not equals and action is not None and action.nargs is None
                yield word
            elif action.nargs != 0:
                yield f"{option}={value}"
            elif value == "true":
                yield option
            elif value != "false":
                self.error(f"{word} is not possible; it is true or false")

    def _refuse_old(self, option: str, name: str) -> None:
        new = OPTIONS.get(option)
        if new in self._option_string_actions:
            self.error(
                is_now_called(name, new if name == option else new.removeprefix("--").replace("-", "_"))
            )


def as_settings(words: Sequence[str]) -> list[str]:
    """Words of which those like `--training.steps 5` and `--training.steps=5` are made `training.steps=5`.

    Raises UserError for one without a value.
    """
    told, rest = [], iter(words)
    for word in rest:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            told.append(word)
            continue
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise UserError(f"{word} has no value; write {word} VALUE or {key}=VALUE")
        told.append(f"{key.replace('-', '_')}={value}")
    return told
