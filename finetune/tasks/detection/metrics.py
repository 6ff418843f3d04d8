"""COCO's numbers of detections, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pycocotools.coco import COCO

# what `COCOeval.summarize` puts at these places of its stats
NAMES = {
    "map": 0,
    "ap50": 1,
    "ap75": 2,
    "ap_small": 3,
    "ap_medium": 4,
    "ap_large": 5,
    "recall": 8,
}


@dataclass(frozen=True, eq=False)
class JudgedImage:
    """A picture's true boxes and what was found, all in its pixels: xyxy [N, 4], class ids [N], scores [N]."""

    row_id: int
    width: int
    height: int
    true_N4: np.ndarray
    true_classes_N: np.ndarray
    found_N4: np.ndarray
    found_classes_N: np.ndarray
    scores_N: np.ndarray


def coco_scores(
    images: Sequence[JudgedImage], class_names: Sequence[str]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Numbers over a data set, and a row for each class.

    `map` is the mean over classes and the overlaps 0.50, 0.55, ... 0.95 of the average precision, `ap50` and `ap75` that at
    one overlap; `ap_small`, `ap_medium` and `ap_large` of boxes below 32 x 32, up to 96 x 96 and above (pixels of the picture),
    left out where there are none; `recall` is the average recall with 100 detections an image. All in [0, 1].
    """
    from pycocotools.cocoeval import COCOeval  # brings matplotlib along

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
        truth, found = _coco(images, class_names, found=False), _coco(images, class_names, found=True)
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = {name: float(evaluation.stats[place]) for name, place in NAMES.items()}
    # [overlaps, recalls, classes, sizes, detections an image]; -1 where a class has no box
    precision_TRC = evaluation.eval["precision"][:, :, :, 0, -1]
    boxes = np.bincount(np.concatenate([image.true_classes_N for image in images]), minlength=len(class_names))
    rows = [
        {
            "class": name,
            "boxes": int(boxes[index]),
            "ap": _mean(precision_TRC[:, :, index]),
            "ap50": _mean(precision_TRC[0, :, index]),
        }
        for index, name in enumerate(class_names)
    ]
    return {name: number for name, number in numbers.items() if number >= 0}, rows


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _coco(images: Sequence[JudgedImage], class_names: Sequence[str], *, found: bool) -> COCO:
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
        "images": [{"id": n, "width": image.width, "height": image.height} for n, image in enumerate(images, 1)],
        "categories": [{"id": index, "name": name} for index, name in enumerate(class_names, 1)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
