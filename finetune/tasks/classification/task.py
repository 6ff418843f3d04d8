"""Classification during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.errors import UserError
from finetune.settings import FinetuneSettings
from finetune.tasks.base import Task
from finetune.tasks.classification.metrics import MULTI, SINGLE, TOP5
from finetune.tasks.classification.mixing import Mixing
from finetune.tasks.classification.model import Classifier
from finetune.tasks.classification.predictor import ImageClassifier
from pretrain.data.reading.choosing import balanced_rows
from pretrain.data.reading.labels import (
    class_counts,
    is_multi_label,
    label_codes,
    labelled_rows,
    read_class_names_of,
)
from pretrain.data.reading.loader import Batch
from pretrain.data.reading.manifest import Manifest
from pretrain.data.views.recipes import ViewSpec, weak_views
from pretrain.encoders import Encoder
from pretrain.training.feeding import uploaded


class Classification(Task):
    """One class an image, from a column of text or whole numbers;
    or any number of them, from a column of lists.
    """

    best_metric = "accuracy"
    layer_decay = 0.75
    predictor = ImageClassifier

    @staticmethod
    def columns_of(settings: FinetuneSettings) -> dict[str, str]:
        """The label's column."""
        return {"label": settings.classification.label_column}

    @staticmethod
    def usable_rows(columns: Mapping[str, str], manifest: Manifest) -> np.ndarray | None:
        """Those with a label."""
        return labelled_rows(manifest, columns["label"])

    @classmethod
    def choose_rows(cls, settings: FinetuneSettings, train: Manifest) -> np.ndarray | None:
        """Few labels are equal fractions of each class;
        balanced sampling repeats the rows of rare classes.
        """
        balanced = settings.classification.balance == "sampling"
        column = settings.classification.label_column
        if is_multi_label(train, column):
            if balanced:
                raise UserError(
                    f"classification.balance=sampling needs one class an image, and column {column!r} holds "
                    "lists; balance=weights suits these"
                )
            return super().choose_rows(settings, train)
        if not balanced and not cls.has_few_labels(settings):
            return None
        codes = label_codes(train, column)
        rows = cls.few_labels(settings, train, classes_N=codes)
        if rows is None:
            rows = np.arange(train.num_rows)
        return balanced_rows(rows, codes[rows], seed=settings.seed) if balanced else rows

    def __init__(self, settings: FinetuneSettings, train: Manifest, validation: Manifest) -> None:
        self.settings, self.columns = settings.classification, self.columns_of(settings)
        column = self.columns["label"]
        self.multi_label = is_multi_label(train, column)
        if is_multi_label(validation, column) != self.multi_label:
            kinds = ("a list", "one class") if self.multi_label else ("one class", "a list")
            raise UserError(
                f"column {column!r} holds {kinds[0]} in the training data and {kinds[1]} in the validation "
                "data"
            )
        self.classes = read_class_names_of(train, validation, column)
        self.mixing = Mixing(self.settings.mixup, self.settings.cutmix, settings.seed)
        self._weights = self._class_weights(train) if self.settings.balance == "weights" else None
        if self.multi_label:
            self.best_metric = "mean_average_precision"
        self.metric_names = MULTI if self.multi_label else (*SINGLE, *[TOP5] * (len(self.classes) > 5))
        left_out = {"training": train.num_left_out, "validation": validation.num_left_out}
        self.notes = [
            f"{num} {data} rows have no label and are left out" for data, num in left_out.items() if num
        ]
        self.findings = {"rows_without_label": left_out} if self.notes else {}
        self.config = {
            "class_names": self.classes.names,
            "class_values": list(self.classes.values),
            "multi_label": self.multi_label,
            "threshold": self.settings.threshold,
            "head": self.settings.head,
        }

    def _class_weights(self, train: Manifest) -> Tensor:
        """Of one class an image: what makes every class weigh the same, one on average over images. Of
        several: negatives over positives, so that both sides of each yes or no weigh the same."""
        counts = class_counts(train, self.columns["label"], self.classes)
        if self.multi_label:
            return torch.from_numpy((train.num_rows - counts) / np.maximum(counts, 1)).float()
        weights = counts.sum() / np.maximum(counts, 1) / (counts > 0).sum()
        return torch.from_numpy(np.where(counts > 0, weights, 0.0)).float()

    @classmethod
    def new_model(cls, encoder: Encoder, config: dict[str, Any], **training: Any) -> Classifier:
        """An encoder and a linear layer."""
        return Classifier(
            encoder,
            num_classes=len(config["class_names"]),
            mode=config["mode"],
            flattened_size=config["image_size"] if config.get("head") == "flattened" else None,
            multi_label=config.get("multi_label", False),
            **training,
        )

    def training_model(self, encoder: Encoder, config: dict[str, Any]) -> Classifier:
        """With label smoothing and class weights."""
        return self.new_model(
            encoder, config, label_smoothing=self.settings.label_smoothing, class_weights=self._weights
        )

    def views(self, size: int) -> list[ViewSpec]:
        """A mild crop and a flip."""
        return weak_views(size, crop_scale=(self.settings.min_crop, 1.0))

    def to_inputs(self, images: list[Tensor], batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images and class ids; or their fractions, where there are several or images are mixed."""
        labels = batch.columns[self.columns["label"]]
        if self.multi_label:
            targets = uploaded(self.classes.multi_hot(labels), device)
        else:
            targets = uploaded(self.classes.ids(labels), device)
        if not self.mixing:
            return images[0], targets
        fractions = targets if self.multi_label else F.one_hot(targets, len(self.classes)).float()
        return self.mixing(images[0], fractions, passes=batch.passes, row_ids=batch.row_ids)
