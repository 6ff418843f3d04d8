"""fovea COMMAND ...: the commands of all packages by one name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, NoReturn

from cluster.errors import UserError, nearest, run_command, run_process


class Command(NamedTuple):
    """What it is for, in a line; the module whose `main(arguments)` runs;
    and the words that go before the arguments there.
    """

    summary: str
    module: str
    before: tuple[str, ...] = ()


COMMANDS: dict[str, Command] = {
    "data": Command("import, check and view data sets", "pretrain.data.__main__"),
    "pretrain": Command(
        "learn an encoder from images without labels; embed, explain, export, report", "pretrain.__main__"
    ),
    "finetune": Command(
        "turn an encoder into a task model; predict, serve, evaluate, explain, export, ...",
        "finetune.__main__",
    ),
    "serve": Command("answer images over HTTP with a fine-tuned model", "finetune.__main__", ("serve",)),
    "demo": Command("from images to an encoder and three models, in a few minutes", "fovea.demo"),
    "submit": Command("run a command on a Ray cluster and follow it", "cluster.__main__", ("submit",)),
    "pipeline": Command("run stages that depend on each other", "cluster.__main__", ("pipeline",)),
    "status": Command("the state of a job", "cluster.__main__", ("status",)),
    "logs": Command("what a job printed", "cluster.__main__", ("logs",)),
    "stop": Command("end a job", "cluster.__main__", ("stop",)),
    "list": Command("the jobs of a cluster", "cluster.__main__", ("list",)),
    "completion": Command(
        "bash | zsh: completion of these commands and of all settings", "fovea.completion"
    ),
}
USAGE = """usage: fovea COMMAND ...

Pretrains image encoders on your own images, and turns them into task models.

commands (--help of each tells more):
{commands}

`fovea pretrain` is `python -m pretrain`; `finetune` likewise, and `fovea data` is `python -m pretrain.data`.
Five lines for a folder of photos:

  fovea data import my/photos my/shards --validation 0.2
  fovea pretrain configs/pretrain/small/simclr.yaml data.url=my/shards/train out=runs/encoder
  fovea finetune configs/finetune/small/full.yaml encoder=runs/encoder/encoder data.url=my/shards/train \\
      validation_url=my/shards/validation out=runs/classifier
  fovea finetune predict runs/classifier/model my/photos predicted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: _run(words))


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(
            USAGE.format(
                commands="\n".join(f"  {name:{width}}  {one.summary}" for name, one in COMMANDS.items())
            )
        )
        return 0 if words else 2
    if words[0] not in COMMANDS:
        raise UserError(
            f"unknown command {words[0]!r}{nearest(words[0], COMMANDS)} (known: {', '.join(COMMANDS)})"
        )
    command = COMMANDS[words[0]]
    return int(import_module(command.module).main([*command.before, *words[1:]]) or 0)


def start() -> NoReturn:
    """The command `fovea`."""
    run_process(lambda: _run(sys.argv[1:]))


if __name__ == "__main__":
    start()
