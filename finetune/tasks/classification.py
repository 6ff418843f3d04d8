"""Classification: one class an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from pretrain.encoders import Encoder, pooled
from pretrain.training.loop import StepOutput


@dataclass(frozen=True)
class Classification:
    """What a classifier says of an image: its class, how sure it is in [0, 1], and the probability of every class."""

    label: str
    score: float
    scores: dict[str, float]


class Classifier(nn.Module):
    """An encoder and a linear layer on its pooled last map.

    Args:
        encoder: takes images_BCHW.
        num_classes: at least 2.
        frozen: only the head learns. Features are then normalised by the statistics of the training data (batch norm without
            gain), so that one learning rate suits every encoder, as in MAE's linear probe (https://arxiv.org/abs/2111.06377).
        label_smoothing: of the cross entropy.
    """

    def __init__(
        self, encoder: Encoder, *, num_classes: int, frozen: bool = False, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.encoder, self.frozen, self.label_smoothing = encoder, frozen, label_smoothing
        features = encoder.channels[-1]
        self.norm = nn.BatchNorm1d(features, affine=False) if frozen else nn.Identity()
        self.head = nn.Linear(features, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        if frozen:
            encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Classifier:
        """Training mode; a frozen encoder stays as it is judged."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """[B, num_classes], float32."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = pooled(self.encoder(images_BCHW))
        logits: Tensor = self.head(self.norm(features.float()))
        return logits

    def forward(self, inputs: tuple[Tensor, Tensor]) -> StepOutput:
        """Cross entropy of (images_BCHW, class ids [B])."""
        images_BCHW, labels_B = inputs
        logits = self.logits(images_BCHW)
        loss = F.cross_entropy(logits, labels_B, label_smoothing=self.label_smoothing)
        right = (logits.detach().argmax(1) == labels_B).float().mean()
        return StepOutput(loss=loss, logs={"train_accuracy": right})


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
