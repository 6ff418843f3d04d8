"""One table of a pipeline's results: each stage's metrics beside its baselines, as Markdown and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cluster import storage
from cluster.columns import in_columns
from cluster.durations import duration
from cluster.errors import UserError
from cluster.jobs.pipeline.plan import Status
from cluster.jobs.pipeline.settings import Pipeline, Stage
from cluster.secrets import masked

# {"rows": [{"name": ..., "metrics": {...}}, ...]}: the stage's own first, then the others
COMPARISON = "comparison.json"
RESULTS_MARKDOWN, RESULTS_JSON = "results.md", "results.json"


def write_results(
    pipeline: Pipeline, status: Mapping[str, Status], reason: Mapping[str, str], seconds: Mapping[str, float]
) -> str:
    """Writes OUT/results.md and OUT/results.json; returns the table for a terminal."""
    rows = [_row(pipeline, stage, status) for stage in pipeline.stages]
    for row in rows:
        row["seconds"] = round(seconds[row["stage"]], 1)
        if row["stage"] in reason:
            row["reason"] = masked(reason[row["stage"]])
    written = f"# {pipeline.name}\n\n{markdown(rows)}\n"
    storage.write_bytes(storage.join(pipeline.out, RESULTS_MARKDOWN), written.encode())
    storage.write_json(storage.join(pipeline.out, RESULTS_JSON), {"pipeline": pipeline.name, "stages": rows})
    return for_terminal(rows)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown.

    Args:
        rows: {"stage", "status", "seconds", "metrics": {name: number}, "baselines": {name: {metric:
            number}}, "reason"}.
    """
    head, *lines = _lines(rows)
    ruled = [head, ["---", "---", "---:", "---", *["---:"] * (len(head) - 4)], *lines]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in ruled)


def for_terminal(rows: list[dict[str, Any]], *, width: int | None = None) -> str:
    """The same in aligned columns of at most `width` characters in all, by default those of the terminal;
    reasons go below.
    """
    head, *lines = _lines([{**row, "reason": None} for row in rows])
    reasons = [f"{row['stage']}: {row['status']}: {row['reason']}" for row in rows if row.get("reason")]
    return "\n".join([in_columns(head, lines, right={2, *range(4, len(head))}, width=width), *reasons])


def _lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A header, and a line for each stage and metric;
    a column for the value, and one for each thing it is compared with.
    """
    others = list(dict.fromkeys(name for row in rows for name in row["baselines"]))
    head = ["stage", "status", "time", "metric", "value", *others, *(["difference"] if others else [])]
    lines = [head]
    for row in rows:
        status = row["status"] + (f": {row['reason']}" if row.get("reason") else "")
        first = [row["stage"], status, duration(row["seconds"])]
        for metric in row["metrics"] or [""]:
            value = row["metrics"].get(metric)
            beside = [row["baselines"].get(name, {}).get(metric) for name in others]
            known = [other for other in beside if other is not None]
            difference = (
                [f"{value - known[0]:+.3f}" if known and value is not None else ""] if others else []
            )
            lines.append(
                [*first, metric.replace("_", " "), _number(value), *map(_number, beside), *difference]
            )
            first = ["", "", ""]
    return lines


def _row(pipeline: Pipeline, stage: Stage, statuses: Mapping[str, Status]) -> dict[str, Any]:
    status = statuses[stage.name]
    row: dict[str, Any] = {
        "stage": stage.name,
        "status": str(status),
        "out": stage.out,
        "metrics": {},
        "baselines": {},
    }
    result = _read(stage.result_url) if status == Status.DONE else None
    if result is None:
        return row
    metrics = _numbers(result)
    asked = stage.settings.metrics
    missing = [name for name in asked if name not in metrics]
    if missing:
        row["reason"] = f"no {', '.join(missing)} among its metrics ({', '.join(metrics) or 'none'})"
    best = [result["best_metric"]] if result.get("best_metric") in metrics else []
    row["metrics"] = {name: metrics[name] for name in asked or best or metrics if name in metrics}
    if stage.settings.baseline is not None:
        other = next(one for one in pipeline.stages if one.name == stage.settings.baseline)
        row["baselines"][other.name] = _numbers(
            _read(other.result_url) if statuses[other.name] == Status.DONE else {}
        )
    comparison = _read(storage.join(stage.out, COMPARISON))
    rows = comparison.get("rows") if isinstance(comparison, dict) else None
    for compared in rows[1:] if isinstance(rows, list) else []:
        if isinstance(compared, dict) and compared.get("name"):
            row["baselines"][str(compared["name"])] = _numbers(compared)
    row["baselines"] = {
        name: {metric: numbers[metric] for metric in row["metrics"] if metric in numbers}
        for name, numbers in row["baselines"].items()
    }
    return row


def _read(url: str) -> Any:
    try:
        return storage.read_json(url) if storage.exists(url) else None
    except UserError:  # a file that is no JSON has no numbers
        return None


def _numbers(result: Any) -> dict[str, float]:
    metrics = result.get("metrics") if isinstance(result, dict) else None
    if not isinstance(metrics, dict):
        return {}
    return {
        str(name): value
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}" if abs(value) >= 10 else f"{value:.3f}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
