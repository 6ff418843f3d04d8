"""The report of a classifier whose images may show several classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from finetune.reporting.base import PACKAGE, Material, Score, TaskReport, random_row, worth_of_pretraining
from finetune.reporting.classes import classes_section
from pretrain.reporting.folder import RunRecord
from pretrain.reporting.numbers import margin, percent
from pretrain.reporting.page import Section, Templates
from pretrain.reporting.page_images import data_url
from pretrain.reporting.verdict import Verdict

NUM_IMAGES = 18
NOISE = 0.01  # above a random ranking


class SeveralClassesReport(TaskReport):
    """See the module."""

    noun = "classifier"
    scores = (
        Score("mean_average_precision", "Mean AP", "ranking of images by class"),
        Score("macro_f1", "Macro F1", "mean over classes"),
        Score("micro_f1", "Micro F1", "over all answers"),
    )

    def verdict(self, run: RunRecord, others: Sequence[Mapping[str, Any]]) -> Verdict:
        """Mean average precision beside a random ranking, and beside random weights or the weakest class."""
        value, num = run.metrics["mean_average_precision"], int(run.result.get("validation_images") or 0)
        rows = [row for row in run.result.get("per_class") or [] if row["images"]]
        lot = sum(row["images"] for row in rows) / max(1, num * len(rows))
        first = (
            f"The classifier ranks images by class with a mean average precision of {percent(value)} over "
            f"{len(rows)} classes of {num:,} validation images, where a random ranking gets {percent(lot)}."
        )
        word, tone = (
            ("finished", "good") if value > lot + NOISE else ("finished, no better than chance", "warn")
        )
        baseline = random_row(others)
        if baseline is not None:
            other = float(baseline["metrics"]["mean_average_precision"])
            # as of fractions: a mean over classes moves less
            noise = math.hypot(margin(value, num), margin(other, num))
            second, second_tone = worth_of_pretraining(value, other, noise, num=num)
            return Verdict(word, tone if second_tone == "good" else "warn", first, second)
        if not rows:
            return Verdict(word, tone, first, "There are 0 classes with images to look at one by one.")
        weakest = min(rows, key=lambda row: row["average_precision"])
        second = f"Its weakest class is “{weakest['class']}” with {percent(weakest['average_precision'])}."
        return Verdict(word, tone, first, second)

    def numbers(self, run: RunRecord) -> list[Section]:
        """Precision and recall of each class."""
        rows = run.result.get("per_class") or []
        return [classes_section(rows)] if rows else []

    def image_sections(self, material: Material) -> list[tuple[str, str, Any]]:
        """Some images with what is said of them."""
        return [("predictions", "Predictions", partial(_predictions, material))]


def _predictions(material: Material) -> Section:
    predictor, rows = material.predictor, material.sample.first[:NUM_IMAGES]
    names = dict(zip(predictor.config["class_values"], predictor.names, strict=True))
    cards = []
    for row, tile, said in zip(
        rows, material.sample.tiles, predictor.predict([row.data for row in rows]), strict=False
    ):
        true = sorted(
            {names.get(value, str(value)) for value in row.columns[predictor.columns["label"]] or ()}
        )
        cards.append(
            {
                "url": data_url(tile),
                "said": ", ".join(said.labels) or "none",
                "true": ", ".join(true) or "none",
                "right": sorted(said.labels) == true,
                "sure": round(100 * said.score),
            }
        )
    lead = (
        "Predictions for some validation images, with the score of the most likely class, and the true "
        "classes."
    )
    body = Templates(PACKAGE).render("predictions.html", cards=cards)
    return Section("predictions", "Predictions", body, lead)
