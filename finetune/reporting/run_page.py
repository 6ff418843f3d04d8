"""The page of one fine-tuning run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from cluster import storage
from cluster.durations import duration
from cluster.errors import UserError, choose
from cluster.secrets import masked
from finetune.comparing import comparison_in
from finetune.model import load_model
from finetune.reporting.base import PACKAGE, Material, Score, TaskReport
from finetune.reporting.robustness import robustness_section
from finetune.reporting.tasks import TASK_REPORTS
from pretrain.reporting import run_sections
from pretrain.reporting.attempts import attempted, missing
from pretrain.reporting.embeddings import features_of
from pretrain.reporting.encoder_sections import Embedded, attention_section, map_section, neighbour_section
from pretrain.reporting.folder import RunRecord
from pretrain.reporting.numbers import percent
from pretrain.reporting.page import Page, Section, Templates
from pretrain.reporting.samples import NUM_IMAGES, draw_sample
from pretrain.reporting.verdict import Verdict, verdict_of

SHARED_SECTIONS = (
    ("attention", "Where it looks"),
    ("neighbours", "Nearest neighbours"),
    ("map", "Map of embeddings"),
)


def page_of(run: RunRecord, *, num_images: int | None = None, seconds: float) -> Page:
    """The page; `num_images` are looked at, as many as the run's settings say when it is None. Raises
    UserError for a run of pretraining."""
    report = report_of(run)
    if num_images is None:
        given = run.setting("report_images")
        num_images = NUM_IMAGES if given is None else int(given)
    rows = comparison_of(run)
    scores = [(score.name, score.title, score.note) for score in report.scores if score.is_fraction]
    sections: list[Section] = [
        *([results_section(run, report, rows)] if run.result.get("metrics") else []),
        *report.numbers(run),
        *robustness_section(run.url, report.scores[0]),
        *(image_sections(run, report, num_images=num_images, seconds=seconds) if num_images else []),
        run_sections.curves(
            run, scores=scores, more=run_sections.own_figures(run, [name for name, _, _ in scores])
        ),
        run_sections.speed(run),
        run_sections.settings(run, "finetune"),
    ]
    return Page(
        kind=f"{report.noun} report",
        title=run.name,
        verdict=verdict(run, report, rows),
        source=masked(run.url),
        chips=_chips(run),
        tiles=[*report.tiles(run), *run_sections.speed_tiles(run)],
        notes=list(run.history.findings.values()),
        sections=sections,
    )


def report_of(run: RunRecord) -> TaskReport:
    """The report of a run's task. Raises UserError when it is not a fine-tuning run."""
    task = run.setting("task")
    if task is None:
        raise UserError(
            f"{run.url} is not a fine-tuning run; `python -m pretrain report {run.url}` shows it"
        )
    return TASK_REPORTS[choose("task", str(task), TASK_REPORTS)].of(run)


def comparison_of(run: RunRecord) -> list[dict[str, Any]]:
    """The rows of comparison.json, this run's first; none while there is none."""
    return list((comparison_in(run.url) or {}).get("rows", []))


def verdict(run: RunRecord, report: TaskReport, rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """The two sentences."""
    return verdict_of(run, lambda finished: report.verdict(finished, rows[1:]), so_far=report.so_far)


def results_section(run: RunRecord, report: TaskReport, rows: Sequence[Mapping[str, Any]]) -> Section:
    """All numbers of the run, beside those of the other starts."""
    metrics = run.result["metrics"]
    shown = [score for score in report.scores if score.name in metrics]
    known = {score.name for score in shown}
    shown += [
        Score(name, name.replace("_", " "), is_fraction=False) for name in metrics if name not in known
    ]
    best, *more = shown
    table = result_rows(run, best, more, rows)
    lead = "On the validation data, the model of the best evaluation."
    if len(table) > 1:
        lead += " The other rows are the same training from other weights."
    body = Templates(PACKAGE).render("results.html", rows=table, best=best, more=more)
    return Section("results", "Results", body, lead)


def result_rows(
    run: RunRecord, best: Score, more: Sequence[Score], rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The lines of the table of results: the run, and those it is compared with."""
    own = {
        "name": "this run",
        "mode": run.setting("mode"),
        "metrics": run.result.get("metrics"),
        "seconds": run.result.get("seconds"),
    }
    return [_row(row, best, more, own=index == 0) for index, row in enumerate(rows or [own])]


def _row(row: Mapping[str, Any], best: Score, more: Sequence[Score], *, own: bool) -> dict[str, Any]:
    metrics = row.get("metrics") or {}
    value, seconds = metrics.get(best.name), row.get("seconds")
    return {
        "own": own,
        "name": row["name"],
        "mode": row.get("mode") or "",
        "share": round(100 * min(max(value or 0.0, 0.0), 1.0), 1),
        "best": best.text(value),
        "more": [score.text(metrics.get(score.name)) for score in more],
        "seconds": duration(seconds) if isinstance(seconds, int | float) else "–",
    }


def image_sections(run: RunRecord, report: TaskReport, *, num_images: int, seconds: float) -> list[Section]:
    """What the task shows of its model, where it looks, neighbours and the map;
    what cannot be made says why.
    """
    deadline = time.monotonic() + seconds
    try:
        material = _material(run, num_images=num_images, deadline=deadline)
    except Exception as error:  # whatever it is, the rest of the page stands
        return [missing("images", "Images", error)]
    encoder, config = material.predictor.model.encoder, material.predictor.config
    look = {"mean": config["mean"], "std": config["std"]}
    sections = [attempted(id, title, make) for id, title, make in report.image_sections(material)]
    how = {"size": config["image_size"], "crop_fraction": config["crop_fraction"]}

    def embedded() -> Embedded:
        if not computed:
            labels = report.labels(material)
            features = features_of(encoder, material.sample.crops_NCSS, deadline=deadline, **look)
            source = masked(str(run.setting("validation_url")))
            computed.append(
                Embedded(material.sample, features, labels, source, taught="were learnt from other images")
            )
        return computed[0]

    computed: list[Embedded] = []
    makers: list[Callable[[], Section]] = [
        lambda: attention_section(encoder, material.sample, how=how, **look),
        lambda: neighbour_section(embedded()),
        lambda: map_section(embedded()),
    ]
    return sections + [
        attempted(id, title, make) for (id, title), make in zip(SHARED_SECTIONS, makers, strict=True)
    ]


def _material(run: RunRecord, *, num_images: int, deadline: float) -> Material:
    url = storage.join(run.url, "model")
    if not storage.exists(storage.join(url, "config.json")):
        raise UserError("the run has no model yet")
    predictor = load_model(url)
    predictor.to("cuda" if torch.cuda.is_available() else "cpu")
    config = predictor.config
    sample = draw_sample(
        str(run.setting("validation_url")),
        image_column=config["image_column"],
        columns=sorted(set(predictor.columns.values())),
        size=config["image_size"],
        crop_fraction=config["crop_fraction"],
        channels=predictor.channels,
        num_images=num_images,
        deadline=time.monotonic() + (deadline - time.monotonic()) / 2,
    )
    if not len(sample):
        raise UserError(f"no image of {run.setting('validation_url')} can be decoded")
    return Material(run, predictor, sample, deadline)


def _chips(run: RunRecord) -> list[tuple[str, str]]:
    fraction = run.setting("label_fraction")
    chips = [
        ("task", str(run.setting("task"))),
        ("encoder", masked(str(run.setting("encoder")))),
        ("mode", str(run.setting("mode"))),
        ("data", masked(str(run.setting("data", "url")))),
        ("validation", masked(str(run.setting("validation_url")))),
    ]
    return (
        [*chips, ("labels", percent(fraction, 0))] if isinstance(fraction, float) and fraction < 1 else chips
    )
