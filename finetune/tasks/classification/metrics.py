"""Metrics of a classifier over a whole validation set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SINGLE = ("accuracy", "macro_f1", "calibration_error", "validation_loss")
TOP5 = "top5_accuracy"
MULTI = ("mean_average_precision", "micro_f1", "macro_f1", "validation_loss")


def scores(logits_NC: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Numbers over a whole validation set: `accuracy` (top 1), `top5_accuracy` (from six classes on),
    `macro_f1` over the classes that occur, and `calibration_error` (expected, 15 bins,
    https://arxiv.org/abs/1706.04599); all in [0, 1].
    """
    # here, because torchmetrics takes longer to import than all else,
    # and a model that predicts has no use for it
    from torchmetrics.functional.classification import multiclass_calibration_error

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
        numbers[TOP5] = float((logits_NC.topk(5, 1).indices == labels_N[:, None]).any(1).float().mean())
    return numbers


def confusion(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Counts int64 [true class, predicted class]."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    matrix: Tensor = multiclass_confusion_matrix(logits_NC, labels_N, num_classes=logits_NC.shape[1])
    return matrix


def _macro_f1(matrix: Tensor) -> float:
    right = matrix.diag().double()
    occurs = matrix.sum(1) > 0
    f1 = 2 * right / (matrix.sum(0) + matrix.sum(1)).clamp_min(1)
    return float(f1[occurs].mean())


def per_class(matrix: Tensor, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and number of images of each class."""
    return [
        _counted(
            name,
            right=int(matrix[index, index]),
            truly=int(matrix[index].sum()),
            said=int(matrix[:, index].sum()),
        )
        for index, name in enumerate(class_names)
    ]


def multi_label_scores(logits_NC: Tensor, targets_NC: Tensor, *, threshold: float) -> dict[str, float]:
    """`mean_average_precision` and `macro_f1` over the classes that occur, and `micro_f1` over all answers;
    all in [0, 1].

    An answer is a class whose probability is at least `threshold`; average precision needs none.
    """
    said, true = logits_NC.sigmoid() >= threshold, targets_NC > 0.5
    right, occurs = (said & true).sum(0), true.any(0)
    twice, both = 2 * right, said.sum(0) + true.sum(0)
    precisions = average_precisions(logits_NC, targets_NC)
    return {
        "mean_average_precision": float(precisions[occurs].mean()) if bool(occurs.any()) else 0.0,
        "micro_f1": float(twice.sum() / both.sum().clamp_min(1)),
        "macro_f1": float((twice / both.clamp_min(1))[occurs].mean()) if bool(occurs.any()) else 0.0,
        "validation_loss": float(F.binary_cross_entropy_with_logits(logits_NC, targets_NC)),
    }


def average_precisions(logits_NC: Tensor, targets_NC: Tensor) -> Tensor:
    """Float [num_classes]: the mean of the precision at each image of the class, as they are ranked;
    0 without any.
    """
    from torchmetrics.functional.classification import binary_average_precision

    probabilities, true = logits_NC.double().sigmoid(), (targets_NC > 0.5).long()
    return torch.stack(
        [
            binary_average_precision(probabilities[:, index], true[:, index])
            if true[:, index].any()
            else probabilities.new_zeros(())
            for index in range(true.shape[1])
        ]
    )


def per_label(
    logits_NC: Tensor, targets_NC: Tensor, class_names: Sequence[str], *, threshold: float
) -> list[dict[str, Any]]:
    """Precision, recall, F1, average precision and number of images of each class."""
    said, true = logits_NC.sigmoid() >= threshold, targets_NC > 0.5
    precisions = average_precisions(logits_NC, targets_NC).tolist()
    right, truly, answers = (counts.sum(0).tolist() for counts in (said & true, true, said))
    return [
        _counted(name, right=right[index], truly=truly[index], said=answers[index])
        | {"average_precision": precisions[index]}
        for index, name in enumerate(class_names)
    ]


def _counted(name: str, *, right: int, truly: int, said: int) -> dict[str, Any]:
    return {
        "class": name,
        "images": truly,
        "precision": right / said if said else 0.0,
        "recall": right / truly if truly else 0.0,
        "f1": 2 * right / (said + truly) if said + truly else 0.0,
    }
