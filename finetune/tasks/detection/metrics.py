"""COCO's detection metrics, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pycocotools.coco import COCO

# what `COCOeval.summarize` puts at these positions of its stats
NAMES = {
    "map": 0,
    "ap50": 1,
    "ap75": 2,
    "ap_small": 3,
    "ap_medium": 4,
    "ap_large": 5,
    "recall": 8,
}


MAX_RESAMPLED = 200_000_000  # detections in all resampled sets: more of these for smaller ones


@dataclass(frozen=True, eq=False)
class EvaluatedImage:
    """An image's true boxes and what was found, all in its pixels:
    xyxy [N, 4], class ids [N], scores [N].
    """

    row_id: int
    width: int
    height: int
    true_N4: np.ndarray
    true_classes_N: np.ndarray
    found_N4: np.ndarray
    found_classes_N: np.ndarray
    scores_N: np.ndarray


def coco_scores(
    images: Sequence[EvaluatedImage], class_names: Sequence[str]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Numbers over a data set, and a row for each class.

    `map` is the mean over classes and the overlaps 0.50, 0.55, ... 0.95 of the average precision, `ap50` and
    `ap75` that at one overlap; `ap_small`, `ap_medium` and `ap_large` of boxes below 32 x 32, up to 96 x 96
    and above (pixels of the image), left out where there are none;
    `recall` is the average recall with 100 detections an image. All in [0, 1].
    """
    numbers, rows, _ = evaluated_scores(images, class_names)
    return numbers, rows


def evaluated_scores(
    images: Sequence[EvaluatedImage], class_names: Sequence[str]
) -> tuple[dict[str, float], list[dict[str, Any]], float]:
    """The same, and the standard error of `map`: how far it moves over sets of as many images,
    drawn from these (bootstrap).
    """
    from pycocotools.cocoeval import COCOeval  # brings matplotlib along

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
        truth, found = _coco(images, class_names, found=False), _coco(images, class_names, found=True)
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = {name: float(evaluation.stats[index]) for name, index in NAMES.items()}
    # [overlaps, recalls, classes, sizes, detections an image]; -1 where a class has no box
    precision_TRC = evaluation.eval["precision"][:, :, :, 0, -1]
    boxes = np.bincount(
        np.concatenate([image.true_classes_N for image in images]), minlength=len(class_names)
    )
    rows = [
        {
            "class": name,
            "boxes": int(boxes[index]),
            "ap": _mean(precision_TRC[:, :, index]),
            "ap50": _mean(precision_TRC[0, :, index]),
        }
        for index, name in enumerate(class_names)
    ]
    return (
        {name: number for name, number in numbers.items() if number >= 0},
        rows,
        _map_error(evaluation, len(images)),
    )


def _map_error(evaluation: Any, num_images: int) -> float:
    """Standard error of mAP over resampled images;
    matches stay as they are, for images are matched one by one.
    """
    parts = evaluation.params
    recalls_R, num_sizes = np.asarray(parts.recThrs), len(parts.areaRng)
    classes = []
    for index in range(len(parts.catIds)):
        start = index * num_sizes * num_images  # of all sizes, which come first
        of_class = [
            (i, e) for i, e in enumerate(evaluation.evalImgs[start : start + num_images]) if e is not None
        ]
        if not sum(len(e["gtIds"]) for _, e in of_class):
            continue
        owner_D = np.concatenate([np.full(len(e["dtScores"]), i) for i, e in of_class])
        order_D = np.argsort(-np.concatenate([e["dtScores"] for _, e in of_class]), kind="mergesort")
        hits_TD = np.concatenate([e["dtMatches"] for _, e in of_class], axis=1)[:, order_D] > 0
        true_N = np.zeros(num_images)
        for i, e in of_class:
            true_N[i] = len(e["gtIds"])
        classes.append((owner_D[order_D], hits_TD, true_N))
    size = sum(hits_TD.size for _, hits_TD, _ in classes)
    num_draws = int(np.clip(MAX_RESAMPLED // max(1, size), 20, 100))
    generator, found = np.random.default_rng(0), []
    for _ in range(num_draws):
        times_N = np.bincount(generator.integers(0, num_images, num_images), minlength=num_images)
        precisions = [
            _average_precision(times_N[owner_D], hits_TD, float(times_N @ true_N), recalls_R)
            for owner_D, hits_TD, true_N in classes
            if times_N @ true_N
        ]
        if precisions:
            found.append(np.mean(precisions))
    return float(np.std(found, ddof=1)) if len(found) > 1 else 0.0


def _average_precision(
    times_D: np.ndarray, hits_TD: np.ndarray, num_true: float, recalls_R: np.ndarray
) -> float:
    """COCO's, over its overlaps, of detections (surest first) that each come several times."""
    right_TD = (hits_TD * times_D).cumsum(1)
    all_D = np.maximum(times_D.cumsum(), 1)
    # what a lower recall reaches counts at least as much as a higher one
    best_TD = np.maximum.accumulate((right_TD / all_D)[:, ::-1], axis=1)[:, ::-1]
    total = 0.0
    for recall_D, best_D in zip(right_TD / num_true, best_TD, strict=True):
        positions_R = np.searchsorted(recall_D, recalls_R, side="left")
        total += float(np.append(best_D, 0.0)[positions_R].mean())
    return total / len(hits_TD)


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _coco(images: Sequence[EvaluatedImage], class_names: Sequence[str], *, found: bool) -> COCO:
    from pycocotools.coco import COCO

    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, 1):
        boxes_N4, classes_N = (
            (image.found_N4, image.found_classes_N) if found else (image.true_N4, image.true_classes_N)
        )
        for index, (left, top, right, bottom) in enumerate(boxes_N4.astype(np.float64).tolist()):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": int(classes_N[index]) + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
            }
            if found:
                annotation["score"] = float(image.scores_N[index])
            annotations.append(annotation)
    coco = COCO()
    coco.dataset = {
        "images": [
            {"id": n, "width": image.width, "height": image.height} for n, image in enumerate(images, 1)
        ],
        "categories": [{"id": index, "name": name} for index, name in enumerate(class_names, 1)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
