"""The command line that both stages share: sub-commands, CONFIG, key=value overrides, --check and --help."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from cluster.command_line import Command, as_settings
from cluster.schemas import describe
from cluster.settings import load_settings

Schema = TypeVar("Schema")
CHECK = "--check"
COMMON_USAGE = """
The same command again continues a run that was cut off. With --check the command validates settings, data,
storage and a first batch, estimates memory and time, and starts nothing. Settings:
"""


def stage_command(
    arguments: Sequence[str],
    usage: str,
    schema: type[Schema],
    runner: Callable[[], Callable[..., int]],
    *,
    commands: Mapping[str, Command] | None = None,
    beneath: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> int:
    """Reads a command line and runs the stage, or the sub-command that it begins with;
    returns the exit code.

    Args:
        arguments: without the program's name.
        usage: what the stage does and an example, for --help.
        schema: of the settings.
        runner: imports and returns `run(settings, check_only=...)`. It is called once the settings are known
            to be right: torch takes seconds to import.
        commands: sub-commands by name.
        beneath: see `load_settings`.

    Raises UserError for everything wrong with the settings.
    """
    commands = commands or {}
    if arguments and arguments[0] in commands:
        return commands[arguments[0]].main(arguments[1:])
    if not arguments or {"-h", "--help"} & set(arguments):
        print(usage + _list(commands) + COMMON_USAGE + describe(schema))
        return 0 if arguments else 2
    config, *overrides = as_settings([argument for argument in arguments if argument != CHECK])
    settings = load_settings(schema, config, overrides, beneath=beneath, told=print)
    return runner()(settings, check_only=CHECK in arguments)


def _list(commands: Mapping[str, Command]) -> str:
    if not commands:
        return ""
    width = max(map(len, commands))
    lines = [f"  {name:{width}}  {command.summary}\n" for name, command in commands.items()]
    return "\nOther commands (--help of each tells more):\n" + "".join(lines)
