"""Writes report.html of a pretraining run, from its folder, and from its data and encoder if available."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch

from cluster import storage
from cluster.command_line import CommandLine
from cluster.errors import UserError
from cluster.secrets import MASK, masked
from cluster.settings import load_settings
from pretrain.data.reading.feature_description import describe_features
from pretrain.data.views.viewing import default_mean, default_std
from pretrain.encoders import Encoder, load_encoder
from pretrain.encoders.looking import Look
from pretrain.encoders.teachers import open_teacher
from pretrain.reporting import run_sections
from pretrain.reporting.attempts import attempted, missing
from pretrain.reporting.charts import Mark
from pretrain.reporting.embeddings import features_of
from pretrain.reporting.encoder_sections import (
    Embedded,
    attention_section,
    map_section,
    neighbour_section,
    teacher_section,
)
from pretrain.reporting.folder import RunRecord, read_run
from pretrain.reporting.numbers import percent, short
from pretrain.reporting.page import Page, Section, Templates, Tile
from pretrain.reporting.samples import NUM_IMAGES, draw_sample, majority_fraction
from pretrain.reporting.start_section import moved_tiles, start_section
from pretrain.reporting.verdict import pretraining_verdict
from pretrain.reporting.view_section import view_section
from pretrain.run import method_of, views_of
from pretrain.settings import PretrainSettings
from pretrain.training import checkpoints
from pretrain.training.probes import UNTRAINED

REPORT = "report.html"
SECONDS = 20.0
IMAGES = (
    ("views", "Views"),
    ("neighbours", "Nearest neighbours"),
    ("map", "Map of embeddings"),
    ("attention", "Where it looks"),
)


def parser() -> CommandLine:
    """The command line."""
    parser = CommandLine(prog="python -m pretrain report", description=__doc__)
    parser.add_argument("out", metavar="OUT", help="folder of a run (path or URL), finished or not")
    parser.add_argument(
        "--images", type=int, help="number of images to use (default: report_images of the run's settings)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help=f"approximate time to spend on images (default: {SECONDS:g})",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """`python -m pretrain report OUT`"""
    options = parser().parse_args(arguments)
    print(f"report: {write_report(options.out, num_images=options.images, seconds=options.seconds)}")
    return 0


def write_report(out: str, *, num_images: int | None = None, seconds: float = SECONDS) -> str:
    """Writes OUT/report.html and returns its URL.

    Args:
        out: folder of a run.
        num_images: at most so many images are looked at; as many as the run's settings say when it is None.
        seconds: after which the looking at more images ends, whatever the encoder's size.

    Raises UserError when OUT is no run folder, or one of fine-tuning.
    """
    run = read_run(out)
    if "task" in run.settings:
        raise UserError(
            f"{run.url} is a fine-tuning run; its report is written by: python -m finetune report {out}"
        )
    url = storage.join(run.url, REPORT)
    storage.write_bytes(url, Templates().page(page_of(run, num_images=num_images, seconds=seconds)))
    return url


def page_of(run: RunRecord, *, num_images: int | None = None, seconds: float = SECONDS) -> Page:
    """The page of a pretraining run."""
    if num_images is None:
        given = run.setting("report_images")
        num_images = NUM_IMAGES if given is None else int(given)
    chance = _chance(run)
    untrained = run.metrics.get(f"knn_accuracy_{UNTRAINED}")
    marks = [] if chance is None else [Mark(f"guessing {percent(chance)}", y=chance)]
    began = "start" if "started_from" in run.result else "untrained"
    marks += [] if untrained is None else [Mark(f"{began} {percent(untrained)}", y=untrained)]
    levels = {"knn_accuracy": marks} if marks else {}
    scores = [("knn_accuracy", "kNN accuracy", "labelled images that the run does not learn from")]
    sections: list[Section | None] = [
        run_sections.curves(run, scores=scores, levels=levels),
        run_sections.health(run),
        start_section(run),
        *(_images(run, num_images=num_images, seconds=seconds) if num_images else []),
        run_sections.speed(run),
        run_sections.settings(run, "pretrain"),
    ]
    return Page(
        kind="pretraining report",
        title=run.name,
        verdict=pretraining_verdict(run, chance=chance),
        source=masked(run.url),
        chips=_chips(run),
        tiles=[*_tiles(run), *run_sections.speed_tiles(run)],
        notes=list(run.history.findings.values()),
        sections=[section for section in sections if section is not None],
    )


def _images(run: RunRecord, *, num_images: int, seconds: float) -> list[Section]:
    """Views, neighbours, map and attention; what the data or the encoder do not allow says so."""
    deadline = time.monotonic() + seconds
    try:
        settings = _settings_of(run)
        url, label_column = _what_to_look_at(settings)
        sample = draw_sample(
            url,
            image_column=settings.data.image_column,
            columns=[label_column] if label_column else [],
            size=settings.views.size,
            crop_fraction=settings.knn.crop_fraction,
            channels=settings.views.channels,
            num_images=num_images,
            deadline=time.monotonic() + seconds / 2,
        )
        if not len(sample):
            raise UserError(f"no image of {url} can be decoded")
    except Exception as error:  # whatever it is, the rest of the page stands
        return [missing(id, title, error) for id, title in IMAGES]
    channels = settings.views.channels
    views = partial(view_section, sample.first, seed=settings.seed, channels=channels)
    sections = [attempted("views", "Views", lambda: views(specs=views_of(settings)))]
    try:
        encoder = _encoder_of(run, settings)
        look = {
            "mean": settings.views.mean or default_mean(channels),
            "std": settings.views.std or default_std(channels),
        }
        embedded = Embedded(
            sample,
            features_of(encoder, sample.crops_NCSS, deadline=deadline, **look),
            _labels(sample.columns.get(label_column or "")),
            source=masked(url if isinstance(url, str) else ", ".join(url)),
        )
    except Exception as error:
        return [*sections, *(missing(id, title, error) for id, title in IMAGES[1:])]
    how = {"size": settings.views.size, "crop_fraction": settings.knn.crop_fraction}
    makers = (
        lambda: neighbour_section(embedded),
        lambda: map_section(embedded),
        lambda: attention_section(encoder, sample, how=how, **look),
    )
    sections += [attempted(id, title, make) for (id, title), make in zip(IMAGES[1:], makers, strict=True)]
    if name := _teacher_of(run, settings):
        later = max(deadline, time.monotonic() + seconds / 4)
        beside = attempted(
            "teacher",
            "The teacher's nearest neighbours",
            lambda: teacher_section(embedded, _seen_by_teacher(name, embedded, later), masked(name)),
        )
        sections.insert(2, beside)
    return sections


def _teacher_of(run: RunRecord, settings: PretrainSettings) -> str | None:
    """The name of the network that the run learns from, if it does."""
    said = run.result.get("teacher")
    if isinstance(said, Mapping) and said.get("name"):
        return str(said["name"])
    arguments = settings.method.arguments
    if isinstance(arguments.get("features"), str):
        return str(describe_features(arguments["features"]).teacher["name"])
    return arguments.get("teacher")


def _seen_by_teacher(name: str, embedded: Embedded, deadline: float) -> Embedded:
    """The teacher's features of the same squares, as large as they are shown."""
    teacher = open_teacher(name)
    if teacher.in_channels != 3:
        raise UserError(f"{name} takes images of {teacher.in_channels} channels, the images here have three")
    look = Look(teacher, torch.device("cpu"))
    mean, std = (torch.tensor(values)[:, None, None] for values in (teacher.mean, teacher.std))
    features: list[np.ndarray] = []
    for start in range(0, len(embedded), look.images_per_pass):
        tiles = embedded.sample.tiles[start : min(start + look.images_per_pass, len(embedded))]
        images_BCHW = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2) / 255
        size = min(teacher.input_size, 160)  # the squares are shown at 128
        images_BCHW = torch.nn.functional.interpolate(
            images_BCHW, size=(size, size), mode="bilinear", antialias=True
        )
        features.append(look.at((images_BCHW - mean) / std).pooled_BD.numpy())
        if time.monotonic() > deadline:
            break
    return dataclasses.replace(embedded, features_ND=np.concatenate(features))


def _settings_of(run: RunRecord) -> PretrainSettings:
    """The run's settings as they were; options that are masked in them are left to the environment."""
    given = dict(run.settings)
    data = given.get("data")
    if isinstance(data, Mapping):
        options = {key: value for key, value in (data.get("storage_options") or {}).items() if value != MASK}
        given["data"] = {**data, "storage_options": options}
    settings = load_settings(PretrainSettings, None, [], beneath=lambda _: given)
    settings.data.use_stores()
    return settings


def _what_to_look_at(settings: PretrainSettings) -> tuple[str | list[str], str | None]:
    """Held-out images with labels where the run has some, else those it learns from."""
    if settings.knn.test_url is not None:
        return settings.knn.test_url, settings.knn.label_column
    return settings.data.urls, None


def _labels(values: Sequence[Any] | None) -> list[str] | None:
    """Labels as text; None where there are none."""
    return (
        None
        if values is None or all(value is None for value in values)
        else [str(value) for value in values]
    )


def _encoder_of(run: RunRecord, settings: PretrainSettings) -> Encoder:
    """The encoder that the run left, or its newest checkpoint's. Raises UserError when there is neither."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    url = storage.join(run.url, "encoder")
    if storage.exists(storage.join(url, "config.json")):
        return load_encoder(url).to(device).eval()
    checkpoint = checkpoints.load_newest(run.url)
    if checkpoint is None:
        raise UserError("the run has neither an encoder nor a checkpoint yet")
    method = method_of(settings)
    method.load_state_dict(checkpoint.state["module"])
    return method.exported.to(device).eval()


def _chance(run: RunRecord) -> float | None:
    """What always naming the most frequent class of the kNN's test data would get; None if unknown."""
    url, column = run.setting("knn", "test_url"), run.setting("knn", "label_column")
    with suppress(Exception):  # the data may be gone, and then it is unknown
        if url and column and run.history.values("knn_accuracy"):
            return majority_fraction(str(url), str(column))
    return None


def _chips(run: RunRecord) -> list[tuple[str, str]]:
    urls = run.setting("data", "url")
    return [
        ("method", str(run.setting("method", "name"))),
        ("encoder", masked(str(run.setting("encoder", "name") or run.setting("encoder", "url")))),
        ("views", f"{run.setting('views', 'size')} px"),
        ("batch", str(run.setting("training", "batch_size_global"))),
        ("data", masked(", ".join(map(str, urls)) if isinstance(urls, list) else str(urls))),
    ]


def _tiles(run: RunRecord) -> list[Tile]:
    metrics = run.metrics
    tiles = [Tile("Loss", short(metrics.get("loss")), f"at first {short(run.history.first('loss'))}")]
    if "knn_accuracy" in metrics:
        tiles.append(Tile("kNN accuracy", percent(metrics["knn_accuracy"]), _untrained(run, "knn_accuracy")))
    if "linear_accuracy" in metrics:
        tiles.append(
            Tile("Linear probe", percent(metrics["linear_accuracy"]), _untrained(run, "linear_accuracy"))
        )
    if "rankme" in metrics:
        tiles.append(Tile("RankMe", short(metrics["rankme"]), "dimensions in use"))
    elif "effective_rank" in metrics:
        tiles.append(Tile("Effective rank", short(metrics["effective_rank"]), "dimensions in use"))
    return [*tiles, *moved_tiles(run)]


def _untrained(run: RunRecord, name: str) -> str:
    score = run.metrics.get(f"{name}_{UNTRAINED}")
    began = "at the start" if "started_from" in run.result else "untrained"
    return "unseen images" if score is None else f"{percent(score)} {began}"
