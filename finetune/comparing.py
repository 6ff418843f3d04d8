"""The same model from other encoders, each a separate run in OUT/compare, and one table of them all."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from cluster import storage
from cluster.columns import in_columns
from cluster.secrets import masked_url
from finetune.settings import FinetuneSettings
from pretrain.encoders.sources import RANDOM, fresh_like
from pretrain.training.run_folder import REPORT, read_result

COMPARISON = "comparison.json"


def compare(settings: FinetuneSettings, run_one: Callable[[FinetuneSettings], int]) -> int:
    """Trains what `settings.compare` names, writes OUT/comparison.json and shows the table.
    Returns the exit code.

    `settings` are those of the run that is finished in OUT; what is finished already is not trained again.
    """
    runs = [(_title(settings.encoder, settings), settings)]
    for other in others(settings):
        code = run_one(other)
        if code:
            return code
        runs.append((_title(other.encoder, settings), other))
    if len(runs) == 1:
        return 0
    rows = [_row(title, run) for title, run in runs]
    best = rows[0]["best_metric"]
    compared = {"task": settings.task, "best_metric": best, "rows": rows}
    if comparison_in(settings.out) != compared:
        # it is written after this, by whichever run gets so far
        storage.remove(storage.join(settings.out, REPORT))
        storage.write_json(storage.join(settings.out, COMPARISON), compared)
    show(rows, best)
    return 0


def comparison_in(out: str) -> dict[str, Any] | None:
    """What `compare` wrote in OUT, None while it has not."""
    url = storage.join(out, COMPARISON)
    return dict(storage.read_json(url)) if storage.exists(url) else None


def others(settings: FinetuneSettings) -> list[FinetuneSettings]:
    """The settings of each run to compare with.

    From random weights all of the network is trained, whatever the mode, except with `linear`: adapters of a
    network that knows nothing would be a baseline of straw.
    """
    found = []
    for name in dict.fromkeys(settings.compare):
        encoder = fresh_like(settings.encoder) if name == RANDOM else name
        if encoder == settings.encoder:
            continue
        is_fresh = encoder.partition(":")[0] == RANDOM
        found.append(
            dataclasses.replace(
                settings,
                encoder=encoder,
                compare=[],
                mode="full" if is_fresh and settings.mode != "linear" else settings.mode,
                out=storage.join(settings.out, "compare", _folder(name)),
            )
        )
    return found


def _folder(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "other"


def _title(encoder: str, own: FinetuneSettings) -> str:
    """`pretrained` is the run's own; other saved encoders are called by the folder of their run."""
    kind, _, like = encoder.partition(":")
    if kind == RANDOM:
        return f"{RANDOM} weights"
    if like and kind in ("timm", "package"):
        return encoder
    parts = [part for part in encoder.rstrip("/").split("/") if part != "encoder"]
    return "pretrained" if encoder == own.encoder or not parts else parts[-1]


def _row(title: str, settings: FinetuneSettings) -> dict[str, Any]:
    result = read_result(settings.out) or {}
    kept = ("metrics", "standard_errors", "best_metric", "best_step", "seconds", "model")
    return {
        "name": title,
        "encoder": masked_url(settings.encoder),
        "mode": settings.mode,
        "out": settings.out,
        **{key: result.get(key) for key in kept},
    }


def show(rows: list[dict[str, Any]], best_metric: str) -> None:
    """Prints the table of all numbers, a line each, the deciding one first; a column for each encoder."""
    names = [best_metric, *(name for name in rows[0]["metrics"] if name != best_metric)]
    modes = {row["mode"] for row in rows}
    head = ["", *(row["name"] if len(modes) == 1 else f"{row['name']} ({row['mode']})" for row in rows)]
    lines = []
    for name in names:
        numbers = (row["metrics"].get(name) for row in rows)
        lines.append(
            [name.replace("_", " "), *("" if number is None else f"{number:.3f}" for number in numbers)]
        )
    print(f"on the validation data:\n{in_columns(head, lines, right=range(1, len(head)))}", flush=True)
