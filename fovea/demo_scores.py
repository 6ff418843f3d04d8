"""What a demo came to: how pretraining went, and a table of all models beside random weights and SimCLR."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.columns import in_columns
from cluster.durations import duration


@dataclass(frozen=True)
class DemoTask:
    """A model of the demo: the folder it lies in, and the metrics shown, with a name each."""

    what: str
    folder: str
    scores: tuple[tuple[str, str], ...]


TASKS = (
    DemoTask("a classifier", "classify", (("accuracy", "accuracy"),)),
    DemoTask("a detector", "detect", (("ap50", "AP50"), ("map", "mAP"))),
    DemoTask("a summarizer", "summarize", (("cider_d", "CIDEr-D"), ("keyword_f1", "keyword F1"))),
)


def show_health(run: Path) -> None:
    """Says in words how pretraining went."""
    print()
    last = last_metrics(run)
    names = [
        ("loss", "loss", ".3f"),
        ("spread", "spread of embeddings (1 fills the sphere, 0 is collapsed)", ".2f"),
        ("effective_rank", "effective rank of embeddings", ".1f"),
        ("knn_accuracy", "kNN accuracy on held-out images", ".1%"),
        ("knn_accuracy_untrained", "the same with the weights it began with", ".1%"),
    ]
    for key, words, form in names:
        if last.get(key) is not None:
            print(f"  {words}: {last[key]:{form}}")


def show_results(out: Path, tasks: Sequence[DemoTask], *, seconds: float) -> None:
    """One table of all models, what it says, and where everything lies."""
    rows = score_rows(out, tasks)
    has_teacher = any(row.simclr is not None for row in rows)
    head = ["model", "score", "pretrained", *["SimCLR"] * has_teacher, "random", "gain", ""]
    lines = [
        [
            row.what,
            row.score,
            *map(_number, (row.pretrained, *[row.simclr] * has_teacher, row.random)),
            f"{row.gain:+.3f}",
            row.standing,
        ]
        for row in rows
    ]
    print("\nOn held-out images: from the pretrained encoder, and from others")
    print(in_columns(head, lines, right=range(2, len(head) - 1)))
    print(in_words(rows))
    print(f"{duration(seconds)} in all. Everything lies in {out}:")
    how = "learnt from the teacher" if has_teacher else "by SimCLR"
    places = [("pretrain/encoder", f"the encoder, {how} (safetensors + config.json)")]
    places += [("pretrain/report.html", "how it went")]
    places += [
        (f"{task.folder}/model", f"{task.what}; finetune.model.load_model loads it") for task in tasks
    ]
    places += [(f"{task.folder}/report.html", "what it sees, beside random weights") for task in tasks]
    places += [("report/report.html", "all of it on one page")]
    for name, what in places:
        if (out / name).exists():
            print(f"  {out / name}  {what}")


@dataclass(frozen=True)
class Row:
    """A line of the table. `noise` is half the 95 % interval of the gain,
    0 where nothing says how large it is.
    """

    what: str
    score: str
    pretrained: float
    simclr: float | None
    random: float
    noise: float

    @property
    def gain(self) -> float:
        """Over random weights."""
        return self.pretrained - self.random

    @property
    def standing(self) -> str:
        """In words, see `finetune.reporting.base.standing`."""
        from finetune.reporting.base import standing

        return standing(self.pretrained, self.random, self.noise)


def score_rows(out: Path, tasks: Sequence[DemoTask] = TASKS) -> list[Row]:
    """All scores that `out` holds, those of the encoder first."""
    from finetune.reporting.base import Z95, noise_of  # it brings torch along, which takes seconds

    mine, simclr = (last_metrics(out / name) for name in ("pretrain", "simclr"))
    num = count_rows(
        next(path for name in ("data", "photos") if (path := out / name / "validation").exists())
    )

    def noise_of_fractions(*fractions: float) -> float:
        return Z95 * math.hypot(*(math.sqrt(fraction * (1 - fraction) / num) for fraction in fractions))

    rows = []
    if "knn_accuracy" in mine and "knn_accuracy_untrained" in mine:
        pair = mine["knn_accuracy"], mine["knn_accuracy_untrained"]
        rows.append(
            Row(
                "the encoder", "kNN", pair[0], simclr.get("knn_accuracy"), pair[1], noise_of_fractions(*pair)
            )
        )
    for task in tasks:
        results = read_comparison(out / task.folder)
        own, random = results["pretrained"], results["random weights"]
        for key, name in task.scores:
            value, fresh = own["metrics"][key], random["metrics"][key]
            beside = results["simclr"]["metrics"][key] if "simclr" in results else None
            min_noise = noise_of_fractions(value, fresh) if key == "accuracy" else 0.0
            rows.append(
                Row(task.what, name, value, beside, fresh, noise_of(key, own, random, min_noise=min_noise))
            )
    return rows


def read_comparison(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of a task's comparison by their names."""
    from finetune.comparing import COMPARISON  # it brings torch along, which takes seconds

    return {row["name"]: row for row in json.loads((folder / COMPARISON).read_text())["rows"]}


def last_metrics(folder: Path) -> dict[str, Any]:
    """The newest value of everything that a run wrote down."""
    last: dict[str, Any] = {}
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        last |= json.loads(line)
    return last


def in_words(rows: Sequence[Row]) -> str:
    """What the table says."""
    from finetune.reporting.base import AHEAD, BEHIND, LEVEL

    by_standing = {
        word: [f"{row.score} of {row.what}" for row in rows if row.standing == word]
        for word in (AHEAD, BEHIND, LEVEL)
    }
    num_ahead = len(by_standing[AHEAD])
    if num_ahead == len(rows):
        return f"The pretrained encoder is ahead of random weights in all {num_ahead} scores."
    said = [f"The pretrained encoder is ahead of random weights in {num_ahead} of {len(rows)} scores."]
    if by_standing[BEHIND]:
        said.append(f"It is behind in {', '.join(by_standing[BEHIND])}.")
    if by_standing[LEVEL]:
        said.append(f"No difference beyond noise is seen in {', '.join(by_standing[LEVEL])}.")
    return " ".join(said)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def count_rows(folder: Path) -> int:
    """Rows of the shards in a folder, by their footers."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in sorted(folder.glob("*.parquet")))
