"""A detector's part of the report: boxes drawn with the truth, and each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np

from finetune.image_inputs import encoded
from finetune.reporting.base import (
    PACKAGE,
    Material,
    Score,
    TaskReport,
    noise_of,
    random_row,
    worth_of_pretraining,
)
from finetune.tasks.detection.boxes import TargetReader, boxes_column_of
from finetune.tasks.detection.predictor import Detections, ObjectDetector
from pretrain.data.images.decode import decode_image
from pretrain.data.reading.labels import ClassNames
from pretrain.data.reading.manifest import load_manifest
from pretrain.reporting.folder import RunRecord
from pretrain.reporting.numbers import percent
from pretrain.reporting.page import Section, Templates
from pretrain.reporting.page_images import class_colour, data_url
from pretrain.reporting.samples import Row
from pretrain.reporting.verdict import Verdict

NUM_IMAGES, LONGEST, MAX_TRUE, MAX_FOUND = 12, 420, 40, 12
MIN_AP50 = 0.05  # half overlap below this is as good as nothing
MIN_NOISE = 0.01  # differences below a point are none, however many images there are


class DetectionReport(TaskReport):
    """See the module."""

    noun = "detector"
    scores = (
        Score("map", "mAP", "overlaps 0.5 to 0.95"),
        Score("ap50", "AP at 0.5", "half overlap"),
        Score("recall", "Recall", "100 boxes per image"),
        Score("ap75", "AP at 0.75"),
        Score("ap_small", "AP small"),
        Score("ap_medium", "AP medium"),
        Score("ap_large", "AP large"),
    )

    def verdict(self, run: RunRecord, others: Sequence[Mapping[str, Any]]) -> Verdict:
        """Average precision, beside random weights or the weakest class."""
        metrics, result = run.metrics, run.result
        first = (
            f"The detector reaches an average precision of {percent(metrics['ap50'])} at an overlap of one "
            f"half (mAP {percent(metrics['map'])}) on {int(result.get('validation_boxes') or 0):,} boxes in "
            f"{int(result.get('validation_images') or 0):,} validation images."
        )
        found = metrics["ap50"] >= MIN_AP50
        word, tone = ("finished", "good") if found else ("finished, little found", "warn")
        baseline = random_row(others)
        if baseline is not None:
            other = float(baseline["metrics"]["map"])
            noise = noise_of("map", result, baseline, min_noise=MIN_NOISE)
            num = int(result.get("validation_images") or 0)
            second, second_tone = worth_of_pretraining(metrics["map"], other, noise, num=num)
            return Verdict(word, tone if second_tone == "good" else "warn", first, second)
        rows = [row for row in result.get("per_class") or [] if row["boxes"] and row["ap50"] is not None]
        if not rows:
            return Verdict(word, tone, first, "No class has boxes to look at one by one (0).")
        weakest, best = min(rows, key=lambda row: row["ap50"]), max(rows, key=lambda row: row["ap50"])
        second = f"It finds “{best['class']}” best ({percent(best['ap50'])} at an overlap of one half)"
        if weakest is not best:
            second += f" and “{weakest['class']}” worst ({percent(weakest['ap50'])})"
        return Verdict(word, tone, first, f"{second}.")

    def numbers(self, run: RunRecord) -> list[Section]:
        """Average precision of each class."""
        rows = [row for row in run.result.get("per_class") or [] if row["boxes"]]
        if not rows:
            return []
        rows.sort(key=lambda row: (row["ap50"] or 0.0, row["class"]))
        body = Templates(PACKAGE).render("detected_classes.html", rows=rows)
        return [Section("classes", "Classes", body, "Average precision of each class; weakest first.")]

    def image_sections(self, material: Material) -> list[tuple[str, str, Any]]:
        """Boxes drawn with the truth."""
        return [("predictions", "Predictions", partial(self._predictions, material))]

    def _predictions(self, material: Material) -> Section:
        predictor = cast(ObjectDetector, material.predictor)
        rows = material.sample.first[:NUM_IMAGES]
        found = predictor.predict([row.data for row in rows])
        reader = _reader(material, predictor)
        colours = {name: class_colour(number) for number, name in enumerate(predictor.class_names)}
        cards = [
            _card(row, detections, reader, predictor, colours)
            for row, detections in zip(rows, found, strict=True)
        ]
        lead = (
            f"Solid boxes are detections (score at least {predictor.config['score_threshold']:g}), dashed "
            f"boxes are the truth, in the colour of the class. The {MAX_FOUND} most confident are drawn; "
            "hover over a box to read it."
        )
        legend = list(colours.items())[:MAX_TRUE]
        body = Templates(PACKAGE).render("detections.html", cards=cards, legend=legend)
        return Section("predictions", "Predictions", body, lead)


def _reader(material: Material, predictor: ObjectDetector) -> TargetReader:
    config, column = predictor.config, predictor.columns["objects"]
    manifest = load_manifest(
        str(material.run.setting("validation_url")), image_column=config["image_column"]
    )
    classes = ClassNames(tuple(config["class_values"]), predictor.class_names)
    return TargetReader(boxes_column_of(manifest, column, config["box_format"]), classes)


def _card(
    row: Row, found: Detections, reader: TargetReader, predictor: ObjectDetector, colours: Mapping[str, str]
) -> dict[str, Any]:
    pixels_HW3 = decode_image(encoded(row.data, predictor.channels))
    height, width = pixels_HW3.shape[:2]
    target, _ = reader.read(row.columns[predictor.columns["objects"]], width=width, height=height)
    names = predictor.class_names
    true = [
        _box(box, names[index], names[index], "true", colours, width, height)
        for box, index in zip(target.xyxy_N4.tolist(), target.classes_N.tolist(), strict=True)
    ]
    # surest first
    said = [
        _box(box, label, f"{label} {score:.2f}", "found", colours, width, height)
        for box, label, score in found
    ]
    return {
        "url": data_url(pixels_HW3, longest=LONGEST),
        "boxes": true[:MAX_TRUE] + said[:MAX_FOUND][::-1],  # the surest is drawn last, over the others
        "num_true": len(true),
        "num_found": len(said),
        "all_drawn": len(true) <= MAX_TRUE and len(said) <= MAX_FOUND,
        "ratio": f"{width} / {height}",
    }


def _box(
    box: Sequence[float],
    name: str,
    text: str,
    kind: str,
    colours: Mapping[str, str],
    width: int,
    height: int,
) -> dict[str, Any]:
    left, top, right, bottom = np.clip(np.array(box) / (width, height, width, height), 0, 1).tolist()
    return {
        "x": f"{100 * left:.2f}",
        "y": f"{100 * top:.2f}",
        "width": f"{100 * (right - left):.2f}",
        "height": f"{100 * (bottom - top):.2f}",
        "colour": colours[name],
        "text": text,
        "kind": kind,
    }
