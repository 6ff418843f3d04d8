"""python -m finetune CONFIG [key=value ...] [--check]"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from cluster.command_line import Command
from cluster.errors import run_process

USAGE = """usage: python -m finetune CONFIG [key=value ...] [--check]

Turns an encoder into a task model. CONFIG is a YAML file (see configs/finetune/), any setting can be
given or changed as key=value:

  python -m finetune configs/finetune/classification.yaml encoder=runs/first/encoder data.url=my/train \\
      validation_url=my/validation out=runs/classifier
"""


def main(arguments: list[str]) -> int:
    """Reads the command line and runs."""
    from finetune.settings import FinetuneSettings  # which loads torch
    from pretrain.training.command import stage_command

    return stage_command(arguments, USAGE, FinetuneSettings, _runner, commands=COMMANDS)


def _runner() -> Callable[..., int]:
    from finetune.reporting.command import write_report
    from finetune.run import run

    return partial(run, report=write_report)


COMMANDS: dict[str, Command] = {
    "evaluate": Command("MODEL DATA: evaluates a model on a labelled data set", "finetune.evaluating"),
    "export": Command(
        "MODEL OUT: a folder for ONNX, timm or Hugging Face, with a model card", "finetune.exporting.command"
    ),
    "explain": Command(
        "MODEL IMAGES OUT: draws the evidence for each class, attention and features", "finetune.explain"
    ),
    "predict": Command(
        "MODEL INPUT ... OUT: predicts for images, Parquet and videos; alarms, localization, tracks",
        "finetune.predicting.command",
    ),
    "serve": Command("MODEL: answers images over HTTP, with Ray Serve", "finetune.serving.command"),
    "report": Command(
        "OUT ...: writes report.html of a run, or one page of several", "finetune.reporting.command"
    ),
    "merge": Command(
        "MODEL DEST: merges adapters and their encoder into a stand-alone model", "finetune.merging"
    ),
}


if __name__ == "__main__":
    run_process(lambda: main(sys.argv[1:]))
