"""A classifier's part of the report: classes, confusion, its most confident mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np

from finetune.reporting.base import PACKAGE, Material, Score, TaskReport, random_row, worth_of_pretraining
from finetune.reporting.classes import classes_section, confusion_section
from finetune.reporting.several_classes import SeveralClassesReport
from finetune.tasks.classification.predictor import ImageClassifier
from pretrain.reporting.folder import RunRecord
from pretrain.reporting.numbers import margin, percent
from pretrain.reporting.page import Section, Templates
from pretrain.reporting.page_images import data_url
from pretrain.reporting.verdict import Verdict

MAX_MISTAKES, MAX_RIGHT = 12, 6


class ClassificationReport(TaskReport):
    """See the module."""

    noun = "classifier"
    scores = (
        Score("accuracy", "Accuracy", "right class first"),
        Score("top5_accuracy", "Top-5 accuracy", "right class among the top five"),
        Score("mean_average_precision", "Mean average precision", "how well each class is ranked"),
        Score("macro_f1", "Macro F1", "mean over classes"),
        Score("micro_f1", "Micro F1", "over all answers"),
        Score("calibration_error", "Calibration error", "0: exactly as confident as accurate"),
    )

    def of(self, run: RunRecord) -> TaskReport:
        """That of images with several classes, where these have some."""
        return SeveralClassesReport() if "mean_average_precision" in run.metrics else self

    def verdict(self, run: RunRecord, others: Sequence[Mapping[str, Any]]) -> Verdict:
        """Accuracy beside guessing, and beside random weights or the most frequent mistake."""
        accuracy, num = run.metrics["accuracy"], int(run.result.get("validation_images") or 0)
        matrix = np.array(run.result.get("confusion_matrix") or [[0]])
        majority = float(matrix.sum(1).max() / max(1, matrix.sum()))
        reach = margin(accuracy, num)
        first = (
            f"The classifier gets {percent(accuracy)} (± {100 * reach:.1f} points) of {num:,} validation "
            f"images right; always guessing the most frequent class gets {percent(majority)}."
        )
        tone = "good" if accuracy - reach > majority else "warn"
        word = "finished" if tone == "good" else "finished, no better than guessing"
        baseline = random_row(others)
        if baseline is None:
            return Verdict(word, tone, first, self._usual_mistake(run, matrix))
        other = float(baseline["metrics"]["accuracy"])
        noise = math.hypot(reach, margin(other, num))
        second, second_tone = worth_of_pretraining(accuracy, other, noise, num=num)
        return Verdict(word, tone if second_tone == "good" else "warn", first, second)

    def _usual_mistake(self, run: RunRecord, matrix: np.ndarray) -> str:
        wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
        if not wrong.sum():
            return f"It makes no mistake on these {int(matrix.sum()):,} images."
        true, said = np.unravel_index(int(wrong.argmax()), wrong.shape)
        names = run.result["class_names"]
        return (
            f"Its most frequent mistake is to take “{names[true]}” for “{names[said]}” "
            f"({int(wrong[true, said])} of {int(matrix[true].sum())} images)."
        )

    def numbers(self, run: RunRecord) -> list[Section]:
        """Which classes are confused (where an image shows one class),
        and precision and recall of each class.
        """
        matrix, names = run.result.get("confusion_matrix"), run.result.get("class_names")
        per_class = run.result.get("per_class") or []
        sections = [confusion_section(np.array(matrix), names)] if matrix and names else []
        return [*sections, classes_section(per_class)] if per_class else sections

    def labels(self, material: Material) -> list[str] | None:
        """The true classes, where an image shows one."""
        if cast(ImageClassifier, material.predictor).multi_label:
            return None
        return [label for (label,) in self._true(material)]

    def _true(self, material: Material) -> list[list[str]]:
        """The names of the true classes of each image."""
        predictor = cast(ImageClassifier, material.predictor)
        names = dict(zip(predictor.config["class_values"], predictor.names, strict=True))
        values = material.sample.columns[predictor.columns["label"]]
        lists = values if predictor.multi_label else [[value] for value in values]
        return [[names.get(value, str(value)) for value in of_image] for of_image in lists]

    def image_sections(self, material: Material) -> list[tuple[str, str, Any]]:
        """The surest mistakes, and some that are right."""
        return [("predictions", "Predictions", partial(self._predictions, material))]

    def _predictions(self, material: Material) -> Section:
        predictor = cast(ImageClassifier, material.predictor)
        sample, true = material.sample, [sorted(names) for names in self._true(material)]
        probabilities = np.concatenate(
            [
                predictor.probabilities(sample.crops_NCSS[start : start + 16]).numpy()
                for start in range(0, len(sample), 16)
            ]
        )
        said, sure = [sorted(predictor.shown(row)) for row in probabilities.tolist()], probabilities.max(1)
        wrong = [index for index in range(len(sample)) if said[index] != true[index]]
        right = [index for index in range(len(sample)) if said[index] == true[index]]
        wrong.sort(key=lambda index: -sure[index])
        some = right[:: max(1, len(right) // MAX_RIGHT)][:MAX_RIGHT]
        cards = [
            {
                "url": data_url(sample.tiles[index]),
                "said": ", ".join(said[index]) or "nothing",
                "true": ", ".join(true[index]) or "nothing",
                "right": said[index] == true[index],
                "sure": round(100 * float(sure[index])),
            }
            for index in [*wrong[:MAX_MISTAKES], *some]
        ]
        lead = (
            f"Of {len(sample):,} validation images sampled for this page, {len(right):,} are right. "
            "The most confident mistakes come first: check their labels, too. Then come some correct "
            "predictions."
        )
        return Section(
            "predictions", "Predictions", Templates(PACKAGE).render("predictions.html", cards=cards), lead
        )
