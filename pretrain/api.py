"""What the commands do, as functions: `pretrain`, `embed`, `import_images` and `check`.

    from pretrain import import_images, pretrain

    shards = import_images("my/photos", "my/shards", validation=0.2)
    made = pretrain(shards.train, out="runs/encoder", method="simclr", epochs=10, workers=0)
    encoder = made.load_encoder()

Each runs what its command runs, prints what it prints, and continues what was cut off when it is called
again. A user's mistake is a UserError of one line; a run that stops itself by a rule is a RunStopped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Unpack

from cluster import storage
from cluster.calling import ended, options_of, plain_errors, settings_of
from cluster.errors import RunStopped
from pretrain.encoders import Encoder, load_encoder
from pretrain.settings import PretrainSettings
from pretrain.training.settings import RunKeywords

Path = str | os.PathLike[str]
Data = Path | list[str]


class PretrainKeywords(RunKeywords, total=False):
    """Short name -> setting."""

    method: Annotated[str, "method.name"]
    method_arguments: Annotated[Mapping[str, Any], "method.arguments"]
    encoder: Annotated[str, "encoder.name"]
    encoder_arguments: Annotated[Mapping[str, Any], "encoder.arguments"]
    weights: Annotated[Path, "encoder.url"]
    image_size: Annotated[int, "views.size"]
    channels: Annotated[int, "views.channels"]
    recipe: Annotated[str, "views.recipe"]
    knn_train: Annotated[Path, "knn.train_url"]
    knn_test: Annotated[Path, "knn.test_url"]


class _DataKeyword(PretrainKeywords, total=False):
    data: Annotated[Data, "data.url"]


@dataclass(frozen=True)
class Pretrained:
    """A finished run of pretraining.

    Attributes:
        out: folder of the run, a path or URL.
        encoder: URL of the encoder's folder; `finetune(encoder=...)` takes it.
        metrics: the last value of each.
        report: URL of report.html.
        result: all of result.json.
    """

    out: str
    encoder: str
    metrics: dict[str, float]
    report: str
    result: dict[str, Any]

    def load_encoder(self) -> Encoder:
        """The network: `encoder(images_BCHW) -> [map_BCHW, ...]`, finest first."""
        return load_encoder(self.encoder)


def pretrain(
    data: Data | None = None,
    *,
    config: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    **keywords: Unpack[PretrainKeywords],
) -> Pretrained:
    """Learns an encoder from images without labels, as `python -m pretrain` does.

    Args:
        data: Parquet shards: a path, glob or URL, or a list of them.
        config: a settings file, such as configs/pretrain/small/simclr.yaml. Without one, what is not said is
            as in the method's paper.
        settings: any setting by its dotted key, {"training.warmup_epochs": 1}; `python -m pretrain --help`
            lists them all.
        keywords: short names of the settings in use most, see `PretrainKeywords`; `out` is needed.

    Raises:
        UserError: something that the caller can fix, in one line.
        RunStopped: the run ended itself by a rule.
        KeyboardInterrupt: interrupted; the same call continues.
    """
    with plain_errors():
        given = {"data": data, **keywords}
        asked = settings_of(
            "pretrain", PretrainSettings, _DataKeyword, given, config=config, settings=settings
        )
        from pretrain.report import write_report
        from pretrain.run import run

        ended(run(asked, report=write_report))
        out = storage.absolute(asked.out)
        result = storage.read_json(storage.join(out, "result.json"))
        return Pretrained(
            out, result["encoder"], result["metrics"], storage.join(out, "report.html"), result
        )


@dataclass(frozen=True)
class Embedded:
    """Features of a data set, as `python -m pretrain embed` leaves them.

    Attributes:
        out: folder of the features; `pretrain(method="distill", method_arguments={"features": out})` takes
            it.
        num_images: rows that have features.
        num_bad: rows that could not be decoded; OUT/bad_rows.jsonl lists them.
    """

    out: str
    num_images: int
    num_bad: int


def embed(teacher: Path, data: Data, out: Path, **options: Any) -> Embedded:
    """Computes the features of every image once, Parquet in, Parquet out,
    as `python -m pretrain embed` does.

    Args:
        teacher: a saved encoder (path or URL), timm:NAME, package:efficientnet_lite0, ...
        data: Parquet shards, a path, glob or URL, or a list of them.
        out: folder of the features, a path or URL. The same call continues what was cut off.
        options: of the command, such as `whole_image=True`, `maps=7`, `workers=2`.

    Raises UserError for what the caller can fix.
    """
    from pretrain import embedding

    with plain_errors():
        urls = ",".join(map(os.fspath, data)) if isinstance(data, list) else data
        parser = embedding.parser()
        result = embedding.embed(
            options_of("embed", parser, [teacher, urls, out], _without_check("embed", options))
        )
        assert result is not None
        bad = len(result.notes)
        return Embedded(storage.absolute(os.fspath(out)), result.num_rows - bad, bad)


@dataclass(frozen=True)
class Imported:
    """Shards that an import made.

    Attributes:
        out: their folder.
        summary: the contents of OUT/_import.json: what became of every file.
    """

    out: str
    summary: dict[str, Any]

    @property
    def train(self) -> str:
        """The shards to learn from: OUT/train where there are splits, else OUT."""
        return self._split("train") or self.out

    @property
    def validation(self) -> str | None:
        """OUT/validation, where there is one."""
        return self._split("validation")

    @property
    def test(self) -> str | None:
        """OUT/test, where there is one."""
        return self._split("test")

    def _split(self, name: str) -> str | None:
        url = storage.join(self.out, name)
        return url if storage.names_in(url) else None


def import_images(src: Path, dest: Path, **options: Any) -> Imported:
    """Packs images into Parquet shards, as `python -m pretrain.data import` does.

    Args:
        src: a folder, file or URL; its kind is recognised, or given as `kind="coco"`.
        dest: folder of the shards, new or empty. The same call continues an import that was cut off.
        options: of the command, such as `validation=0.2`, `drop_duplicates=True`, `short_side=256`.

    Raises:
        UserError: something that the caller can fix.
        RunStopped: more than `max_set_aside` of the images or annotations were set aside; the shards are
            kept so that you can look at them.
    """
    from pretrain.data import __main__ as commands
    from pretrain.data.packing.import_command import import_as_asked

    with plain_errors():
        parser = commands.parser_of("import")
        asked = options_of("import_images", parser, [src, dest], _without_check("import_images", options))
        summary = import_as_asked(asked)
        assert summary is not None
        if summary["stopped"] is not None:
            raise RunStopped(summary["stopped"])
        return Imported(storage.absolute(os.fspath(dest)), summary)


def check(url: Path, **options: Any) -> dict[str, Any]:
    """Says what is in a data set, as `python -m pretrain.data check` does,
    and returns the report as its `--json` has it.

    Args:
        url: a Parquet file, a folder of them, or a glob.
        options: of the command, such as `rows="all"`, `sheet="sheet.png"`, `fix="my/shards"`.

    Raises UserError for what the caller can fix.
    """
    from pretrain.data import __main__ as commands

    with plain_errors():
        return commands.check_as_asked(options_of("check", commands.parser_of("check"), [url], options))


def _without_check(function: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The command's `--check` makes nothing that a function could return.
    Raises UserError where it is asked for.
    """
    from cluster.errors import UserError

    if options.get("check"):
        raise UserError(f"{function}(): check=True makes nothing; use the command's --check")
    return options
