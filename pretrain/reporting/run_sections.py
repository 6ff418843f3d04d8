"""The parts of a page that every run has, made from its folder alone:
curves, speed, interruptions, settings.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from cluster.durations import duration
from cluster.secrets import masked
from pretrain.reporting.charts import Line, Mark, line_chart
from pretrain.reporting.folder import RunRecord
from pretrain.reporting.numbers import percent, short
from pretrain.reporting.page import Figure, Section, Templates, Tile
from pretrain.training.probes import UNTRAINED

# shown in a chart of their own, or no quantity to draw
PLACED = frozenset(
    [
        *("step", "samples_seen", "epoch", "loss", "learning_rate", "gradient_norm", "images_per_second"),
        *(
            "data_wait_fraction",
            "spread",
            "effective_rank",
            "alignment",
            "uniformity",
            "knn_accuracy",
            "linear_accuracy",
            f"knn_accuracy_{UNTRAINED}",
            f"linear_accuracy_{UNTRAINED}",
        ),
        *("rankme", "bad_rows", "read_retries", "restarts", "seconds", "failed_writes"),
    ]
)
MAX_OWN_FIGURES, MAX_LISTED = 12, 8


def speed_tiles(run: RunRecord) -> list[Tile]:
    """How long, how fast, how often interrupted, how many rows bad."""
    seconds = run.result.get("seconds", run.history.last("seconds"))
    rate = run.result.get("images_per_second", run.history.last("images_per_second"))
    waits = run.history.values("data_wait_fraction")
    num_steps = f"of {run.num_steps:,}" if run.num_steps else ""
    wait = f"{percent(sum(waits) / len(waits), 0)} of it waiting for data" if waits else ""
    where = f"on {run.result['device']}" if "device" in run.result else ""
    restarts, bad = run.result.get("restarts", run.history.last("restarts")), _num_bad(run)
    return [
        Tile("Steps", f"{max(run.history.step, int(run.result.get('steps') or 0)):,}", num_steps),
        Tile(
            "Training time",
            "–" if seconds is None else duration(seconds),
            ", ".join(filter(None, (where, wait))),
        ),
        Tile("Images a second", short(rate), f"{_count(run.history.last('samples_seen'))} images seen"),
        Tile("Restarts", _count(restarts or 0), f"{bad:,} bad row{'s'[: bad != 1]} replaced"),
    ]


def curves(
    run: RunRecord,
    *,
    id: str = "curves",
    title: str = "Training",
    scores: Sequence[tuple[str, str, str]] = (),
    levels: Mapping[str, Sequence[Mark]] | None = None,
    more: Sequence[Figure] = (),
) -> Section:
    """Loss, learning rate and gradient over the steps, and `scores` (name, title, note),
    which are fractions of one.

    `levels` are horizontal marks of a score, by its name; `more` charts come last.
    """
    score_figures = [
        figure(
            run,
            name,
            words,
            note=note,
            fractions=True,
            text=percent,
            bounds=(0.0, None),
            marks=(levels or {}).get(name, ()),
        )
        for name, words, note in scores
        if run.history.values(name)
    ]
    figures = [
        figure(run, "loss", "Loss", smooth=True),
        *score_figures,
        dataclasses.replace(
            figure(run, "learning_rate", "Learning rate", bounds=(0.0, None)),
            value=f"peak {short(max(run.history.values('learning_rate'), default=None))}",
        ),
        figure(run, "gradient_norm", "Norm of the gradient", log=True, smooth=True),
        *more,
    ]
    return Section(id, title, Templates().render("charts.html", figures=figures), _restarts_in_words(run))


def health(run: RunRecord) -> Section | None:
    """The spread and rank of the embeddings, and the method's own numbers;
    None where they are not logged.
    """
    size = run.setting("training", "batch_size_global")
    most = f"dimensions in use, at most the smaller of batch{f' ({size})' if size else ''} and width"
    figures = [
        figure(
            run,
            "spread",
            "Spread of embeddings",
            bounds=(0.0, 1.0),
            note="1 fills the sphere; at 0 all are one point",
        ),
        figure(run, "effective_rank", "Effective rank", bounds=(0.0, None), smooth=True, note=most),
        figure(
            run,
            "alignment",
            "Alignment",
            bounds=(0.0, None),
            smooth=True,
            note="squared distance of two views of an image, 0 to 4; lower is closer",
        ),
        figure(
            run,
            "uniformity",
            "Uniformity",
            smooth=True,
            note="0 is collapsed; lower is more even on the sphere",
        ),
    ]
    if not run.history.values("spread"):
        return None
    figures += own_figures(run)
    lead = "Numbers that need no labels: whether images are still told apart, and in how many dimensions."
    drawn = [made for made in figures if made.value != "–"]
    return Section("health", "Health", Templates().render("charts.html", figures=drawn), lead)


def own_figures(run: RunRecord, besides: Collection[str] = ()) -> list[Figure]:
    """Charts of what a method or a task logs of its own, but `besides`."""
    own = [name for name in run.history.names if name not in PLACED and name not in besides]
    return [
        figure(run, name, _words(name), smooth=True)
        for name in own[:MAX_OWN_FIGURES]
        if len(run.history.values(name)) > 1
    ]


def speed(run: RunRecord) -> Section:
    """Throughput, the fraction of time waited for data, bad rows and restarts."""
    retries = run.history.last("read_retries")
    figures = [
        figure(run, "images_per_second", "Images a second", bounds=(0.0, None)),
        figure(
            run,
            "data_wait_fraction",
            "Time spent waiting for data",
            fractions=True,
            bounds=(0.0, 1.0),
            text=lambda fraction: percent(fraction, 0),
            note="near 0 % the network takes the time, near 100 % reading does",
        ),
    ]
    if _num_bad(run):
        figures.append(figure(run, "bad_rows", "Bad rows so far", bounds=(0.0, None)))
    if retries:
        figures.append(figure(run, "read_retries", "Retried reads", bounds=(0.0, None)))
    body = Templates().render(
        "speed.html",
        figures=figures,
        restarts=[_restart(entry) for entry in run.restarts[-MAX_LISTED:]],
        bad_rows=[_bad_row(row) for row in run.bad_rows[:MAX_LISTED]],
        num_bad=_num_bad(run),
    )
    return Section("speed", "Speed and interruptions", body)


def settings(run: RunRecord, stage: str) -> Section:
    """Every setting, and the command that repeats the run. `stage`: `pretrain` or `finetune`."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for key, value in flat(run.settings):
        group, _, name = key.rpartition(".")
        groups.setdefault(group or "run", []).append((name, masked(_value(value))))
    return Section(
        "settings",
        "Settings",
        Templates().render(
            "settings.html",
            command=masked(
                f"python -m {stage} {shlex.quote(run.url + '/settings.yaml')} out={shlex.quote(run.url)}"
            ),
            groups=sorted(groups.items(), key=lambda item: item[0] != "run"),
            num_settings=sum(map(len, groups.values())),
        ),
    )


def figure(
    run: RunRecord,
    name: str,
    title: str,
    *,
    text: Callable[[float], str] = short,
    note: str = "",
    fractions: bool = False,
    log: bool = False,
    smooth: bool = False,
    bounds: tuple[float | None, float | None] = (None, None),
    marks: Sequence[Mark] = (),
) -> Figure:
    """The chart of one logged number, with the run's restarts in it."""
    steps, values = run.history.column(name)
    restarts = [Mark(f"continued from step {step:,}", x=float(step)) for step in _restart_steps(run)]
    svg = line_chart(
        [Line(title, steps, values)],
        label=f"{title} over steps",
        text=text,
        fractions=fractions,
        log=log,
        smooth=smooth,
        bounds=bounds,
        marks=[*restarts, *marks],
    )
    last = run.history.last(name)
    gaps = sum(value is None for value in values)
    if gaps:
        note = f"{gaps} of {len(values)} values are not finite and left out" + (f"; {note}" if note else "")
    return Figure(title, svg, "–" if last is None else text(last), note)


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested settings with their dotted keys, in their order."""
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value and not key.endswith("arguments"):
            leaves += flat(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves


def _bad_row(row: Mapping[str, Any]) -> dict[str, str]:
    file = masked(str(row.get("file", "")))
    location = f"{file.rpartition('/')[2]}, row group {row.get('row_group')}, row {row.get('row')}"
    return {"file": file, "location": location, "reason": str(row.get("reason", ""))}


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)


def _restarts_in_words(run: RunRecord) -> str:
    restarts = _restart_steps(run)
    if not restarts:
        return "Each point is a line of the log. Hover over a chart, or touch it, to read its values."
    steps = ", ".join(f"{step:,}" for step in restarts[:8])
    return f"Dashed lines mark where the run was cut off and continued from a checkpoint (step {steps})."


def _restart_steps(run: RunRecord) -> list[int]:
    return sorted({step for entry in run.restarts if isinstance(step := entry.get("from_step"), int)})


def _restart(entry: Mapping[str, Any]) -> dict[str, str]:
    lost, seconds = entry.get("lost_steps"), entry.get("seconds_to_recover")
    parts = [f"from step {entry.get('from_step')}"]
    if lost:
        parts.append(f"{lost} step{'s'[: lost != 1]} repeated")
    if isinstance(seconds, int | float):
        parts.append(f"{duration(seconds)} to recover")
    return {
        "why": masked(str(entry.get("why", ""))),
        "when": str(entry.get("when", "")),
        "what": ", ".join(parts),
    }


def _num_bad(run: RunRecord) -> int:
    return int(run.result.get("bad_rows", run.history.last("bad_rows")) or 0)


def _count(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{int(value):,}"


def _words(name: str) -> str:
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]
