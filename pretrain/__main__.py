"""python -m pretrain CONFIG [key=value ...] [--check]"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from cluster.command_line import Command
from cluster.errors import run_process

USAGE = """usage: python -m pretrain CONFIG [key=value ...] [--check]

Learns an encoder from images without labels. CONFIG is a YAML file (see configs/pretrain/), any setting
can be given or changed as key=value. Other settings are as in the method's paper (pretrain/papers.py):

  python -m pretrain configs/pretrain/simclr.yaml data.url=my/shards out=runs/first
"""


def main(arguments: list[str]) -> int:
    """Reads the command line and runs."""
    from pretrain.papers import defaults_of
    from pretrain.settings import PretrainSettings  # which loads torch
    from pretrain.training.command import stage_command

    return stage_command(arguments, USAGE, PretrainSettings, _runner, commands=COMMANDS, beneath=defaults_of)


def _runner() -> Callable[..., int]:
    from pretrain.report import write_report
    from pretrain.run import run

    return partial(run, report=write_report)


COMMANDS: dict[str, Command] = {
    "embed": Command(
        "ENCODER DATA OUT: the features of every image, Parquet in, Parquet out", "pretrain.embedding"
    ),
    "export": Command(
        "ENCODER OUT: a folder for ONNX, timm or Hugging Face, with a model card",
        "pretrain.exporting.command",
    ),
    "explain": Command(
        "ENCODER IMAGES OUT: draws attention by layer and head, rollout and features",
        "pretrain.explaining.command",
    ),
    "report": Command("OUT: writes report.html of a run, finished or not", "pretrain.report"),
}


if __name__ == "__main__":
    run_process(lambda: main(sys.argv[1:]))
