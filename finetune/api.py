"""What the commands do, as functions: `finetune`, `evaluate` and `predict`.

    from finetune import finetune, load_model

    made = finetune("my/shards/train", validation="my/shards/validation", encoder="runs/encoder/encoder",
        out="runs/classifier")
    print(made.metrics["accuracy"], made.load_model().predict("my/photo.jpg"))

Each runs what its command runs, prints what it prints, and continues what was cut off when it is called
again. A user's mistake is a UserError of one line; a run that stops itself by a rule is a RunStopped.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Unpack

from cluster import storage
from cluster.calling import ended, options_of, plain_errors, settings_of
from cluster.errors import UserError
from finetune.comparing import COMPARISON
from finetune.model import load_model
from finetune.settings import FinetuneSettings
from finetune.tasks.base import Predictor
from pretrain.training.settings import RunKeywords

Path = str | os.PathLike[str]
Data = Path | list[str]
PREDICTIONS = "predictions.jsonl"


class FinetuneKeywords(RunKeywords, total=False):
    """Short name -> setting."""

    validation: Annotated[Path, "validation_url"]
    task: Annotated[str, "task"]
    encoder: Annotated[Path, "encoder"]
    compare: Annotated[list[str], "compare"]
    mode: Annotated[str, "mode"]
    label_column: Annotated[str, "classification.label_column"]
    objects_column: Annotated[str, "detection.objects_column"]
    captions_column: Annotated[str, "summarization.captions_column"]
    label_fraction: Annotated[float, "label_fraction"]
    labels_per_class: Annotated[int, "labels_per_class"]
    image_size: Annotated[int, "image_size"]
    best_metric: Annotated[str, "best_metric"]


class _DataKeyword(FinetuneKeywords, total=False):
    data: Annotated[Data, "data.url"]


@dataclass(frozen=True)
class Finetuned:
    """A finished run of fine-tuning.

    Attributes:
        out: folder of the run, a path or URL.
        model: URL of the model's folder.
        metrics: on the validation data.
        comparison: a row for this model and for each that it was compared with; empty where `compare=[]`.
        report: URL of report.html.
        result: all of result.json.
    """

    out: str
    model: str
    metrics: dict[str, float]
    comparison: list[dict[str, Any]]
    report: str
    result: dict[str, Any]

    def load_model(self) -> Predictor:
        """The model; `.predict(images)` gives typed results."""
        return load_model(self.model)


def finetune(
    data: Data | None = None,
    *,
    config: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    **keywords: Unpack[FinetuneKeywords],
) -> Finetuned:
    """Turns an encoder into a task model, as `python -m finetune` does.

    Args:
        data: labelled Parquet shards to learn from: a path, glob or URL, or a list of them.
        config: a settings file, such as configs/finetune/classification.yaml.
        settings: any setting by its dotted key, {"lora.rank": 8}; `python -m finetune --help` lists them
            all.
        keywords: short names of the settings in use most, see `FinetuneKeywords`;
            `out`, `encoder` and `validation` are needed.

    Raises:
        UserError: something that the caller can fix, in one line.
        RunStopped: the run ended itself by a rule.
        KeyboardInterrupt: interrupted; the same call continues.
    """
    with plain_errors():
        given = {"data": data, **keywords}
        asked = settings_of(
            "finetune", FinetuneSettings, _DataKeyword, given, config=config, settings=settings
        )
        from finetune.reporting.command import write_report
        from finetune.run import run

        ended(run(asked, report=write_report))
        out = storage.absolute(asked.out)
        result = storage.read_json(storage.join(out, "result.json"))
        compared = storage.join(out, COMPARISON)
        rows = storage.read_json(compared)["rows"] if storage.exists(compared) else []
        return Finetuned(
            out, result["model"], result["metrics"], rows, storage.join(out, "report.html"), result
        )


@dataclass(frozen=True)
class Evaluated:
    """Scores of a model on a labelled data set.

    Attributes:
        metrics: accuracy, mAP, ... by name.
        details: all that the command's `--json` writes: scores by class, confusion matrix, ...
    """

    metrics: dict[str, float]
    details: dict[str, Any]


def evaluate(model: Path, data: Path, **options: Any) -> Evaluated:
    """Evaluates a model on a labelled data set, as `python -m finetune evaluate` does.

    Args:
        model: its folder, a path or URL.
        data: labelled Parquet shards.
        options: of the command, such as `column=["label=species"]` or `corruptions=True`.

    Raises UserError for what the caller can fix.
    """
    from finetune import evaluating

    with plain_errors():
        whole = evaluating.evaluate(
            options_of("evaluate", evaluating.parser(), [model, data], _made("evaluate", options))
        )
        assert whole is not None
        return Evaluated(whole["metrics"], whole)


@dataclass(frozen=True)
class Predictions:
    """What a model predicts: iterating gives a record for each image, in their order.

    A record holds the image (`source`, `index`, `seconds`), why it could not be decoded (`error`),
    and the task's results.

    Attributes:
        out: folder with predictions.jsonl, predictions.parquet and what else was asked for; None where none
            was named.
        num_images, num_bad: how many there were, and how many of them could not be decoded.
    """

    out: str | None
    num_images: int
    num_bad: int
    _kept: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self._kept if self.out is None else _records(self.out)


def predict(model: Path, images: Data, out: Path | None = None, **options: Any) -> Predictions:
    """Predicts for images, folders, Parquet shards and videos, as `python -m finetune predict` does.

    Args:
        model: its folder, a path or URL.
        images: an image, folder, glob, Parquet shards or video, or a list of these; paths or URLs.
        out: folder for the results; without one they are kept in memory.
        options: of the command, such as `draw=True`, `localize="lesion"`, `workers=2`.

    Raises UserError for what the caller can fix.
    """
    from finetune.predicting import command

    inputs = images if isinstance(images, list) else [images]
    with plain_errors(), tempfile.TemporaryDirectory(prefix="fovea-predict-") as folder:
        there = folder if out is None else os.fspath(out)
        asked = options_of("predict", command.parser(), [model, *inputs, there], _made("predict", options))
        counted = command.predict(asked)
        assert counted is not None
        kept = tuple(_records(folder)) if out is None else ()
        return Predictions(None if out is None else storage.absolute(there), *counted, kept)


def _records(out: str) -> Iterator[dict[str, Any]]:
    with storage.open_input(storage.join(out, PREDICTIONS)) as lines:
        yield from map(json.loads, lines)


def _made(function: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options. Raises UserError for the command's `--check`,
    which makes nothing that a function could return.
    """
    if options.get("check"):
        raise UserError(f"{function}(): check=True makes nothing; use the command's --check")
    return options
