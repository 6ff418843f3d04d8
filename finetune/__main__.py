"""python -m finetune CONFIG [key=value ...] [--check]"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

from cluster.errors import run_command
from finetune.settings import FinetuneSettings
from pretrain.training.command import Command, stage_command

USAGE = """usage: python -m finetune CONFIG [key=value ...] [--check]

Turns an encoder into a task model. CONFIG is a YAML file (see configs/finetune/), any setting can be
given or changed as key=value:

  python -m finetune configs/finetune/classification.yaml encoder=runs/first/encoder data.url=my/train \
      validation_url=my/validation out=runs/classifier
"""


def main(arguments: list[str]) -> int:
    """Reads the command line and runs."""
    return stage_command(arguments, USAGE, FinetuneSettings, _runner, commands=COMMANDS)


def _runner() -> Callable[..., int]:
    from finetune.reporting.command import write_report
    from finetune.run import run

    return partial(run, report=write_report)


def _evaluate(arguments: Sequence[str]) -> int:
    from finetune.evaluating import main

    return main(arguments)


def _explain(arguments: Sequence[str]) -> int:
    from finetune.explain import main

    return main(arguments)


def _predict(arguments: Sequence[str]) -> int:
    from finetune.predicting.command import main

    return main(arguments)


def _report(arguments: Sequence[str]) -> int:
    from finetune.reporting.command import main

    return main(arguments)


def _serve(arguments: Sequence[str]) -> int:
    from finetune.serving.command import main

    return main(arguments)


def _merge(arguments: Sequence[str]) -> int:
    from finetune.merging import main

    return main(arguments)


def _export(arguments: Sequence[str]) -> int:
    from finetune.exporting.command import main

    return main(arguments)


# name -> what it is for, and what runs; a function of its own keeps the imports of the others away
COMMANDS: dict[str, Command] = {
    "evaluate": Command("MODEL DATA: evaluates a model on a labelled data set", _evaluate),
    "export": Command("MODEL OUT: a folder for ONNX, timm or Hugging Face, with a model card", _export),
    "explain": Command("MODEL IMAGES OUT: draws the evidence for each class, attention and features", _explain),
    "predict": Command(
        "MODEL INPUT ... OUT: predicts for images, Parquet and videos; alarms, places, tracks", _predict
    ),
    "serve": Command("MODEL: answers images by HTTP, on Ray Serve", _serve),
    "report": Command("OUT ...: writes report.html of a run, or one page of several", _report),
    "merge": Command("MODEL DEST: merges adapters and their encoder into a stand-alone model", _merge),
}


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
