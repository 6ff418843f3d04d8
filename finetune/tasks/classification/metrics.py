"""Numbers of a classifier over a whole validation set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)


def scores(logits_NC: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Numbers over a whole validation set: `accuracy` (top 1), `top5_accuracy` (from six classes on), `macro_f1` over the
    classes that occur, and `calibration_error` (expected, 15 bins, https://arxiv.org/abs/1706.04599); all in [0, 1]."""
    num_classes = logits_NC.shape[1]
    numbers = {
        "accuracy": float((logits_NC.argmax(1) == labels_N).float().mean()),
        "macro_f1": _macro_f1(confusion(logits_NC, labels_N)),
        "calibration_error": float(
            multiclass_calibration_error(logits_NC.softmax(1), labels_N, num_classes=num_classes, n_bins=15)
        ),
        "validation_loss": float(F.cross_entropy(logits_NC, labels_N)),
    }
    if num_classes > 5:
        numbers["top5_accuracy"] = float((logits_NC.topk(5, 1).indices == labels_N[:, None]).any(1).float().mean())
    return numbers


def confusion(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Counts int64 [true class, predicted class]."""
    matrix: Tensor = multiclass_confusion_matrix(logits_NC, labels_N, num_classes=logits_NC.shape[1])
    return matrix


def _macro_f1(matrix: Tensor) -> float:
    right = matrix.diag().double()
    occurs = matrix.sum(1) > 0
    f1 = 2 * right / (matrix.sum(0) + matrix.sum(1)).clamp_min(1)
    return float(f1[occurs].mean())


def per_class(matrix: Tensor, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and number of images of each class."""
    rows = []
    for index, name in enumerate(class_names):
        right, truly, said = (int(matrix[index, index]), int(matrix[index].sum()), int(matrix[:, index].sum()))
        rows.append(
            {
                "class": name,
                "images": truly,
                "precision": right / said if said else 0.0,
                "recall": right / truly if truly else 0.0,
                "f1": 2 * right / (said + truly) if said + truly else 0.0,
            }
        )
    return rows
