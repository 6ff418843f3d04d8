"""python -m pretrain CONFIG [key=value ...] [--check]"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

from cluster.errors import run_command
from pretrain.papers import defaults_of
from pretrain.settings import PretrainSettings
from pretrain.training.command import Command, stage_command

USAGE = """usage: python -m pretrain CONFIG [key=value ...] [--check]

Learns an encoder from images without labels. CONFIG is a YAML file (see configs/pretrain/), any setting
can be given or changed as key=value. What is not said is as in the method's paper (pretrain/papers.py):

  python -m pretrain configs/pretrain/simclr.yaml data.url=my/shards out=runs/first
"""


def main(arguments: list[str]) -> int:
    """Reads the command line and runs."""
    return stage_command(arguments, USAGE, PretrainSettings, _runner, commands=COMMANDS, beneath=defaults_of)


def _runner() -> Callable[..., int]:
    from pretrain.report import write_report
    from pretrain.run import run

    return partial(run, report=write_report)


def _report(arguments: Sequence[str]) -> int:
    from pretrain.report import main

    return main(arguments)


def _explain(arguments: Sequence[str]) -> int:
    from pretrain.explaining.command import main

    return main(arguments)


def _embed(arguments: Sequence[str]) -> int:
    from pretrain.embedding import main

    return main(arguments)


def _export(arguments: Sequence[str]) -> int:
    from pretrain.exporting.command import main

    return main(arguments)


# name -> what it is for, and what runs; a function of its own keeps the imports of the others away
COMMANDS: dict[str, Command] = {
    "embed": Command("ENCODER DATA OUT: the features of every image, Parquet in, Parquet out", _embed),
    "export": Command("ENCODER OUT: a folder for ONNX, timm or Hugging Face, with a model card", _export),
    "explain": Command("ENCODER IMAGES OUT: draws attention by layer and head, rollout and features", _explain),
    "report": Command("OUT: writes report.html of a run, finished or not", _report),
}


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
