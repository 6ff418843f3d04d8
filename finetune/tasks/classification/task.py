"""Classification while it is learnt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finetune.settings import FinetuneSettings
from finetune.tasks.base import Task
from finetune.tasks.classification.model import Classifier
from finetune.tasks.classification.predictor import ImageClassifier
from pretrain.data.labels import read_class_names_of
from pretrain.data.loader import Batch
from pretrain.data.manifest import Manifest
from pretrain.data.recipes import ViewSpec, weak_views
from pretrain.encoders import Encoder


class Classification(Task):
    """One class an image, from a column of text or whole numbers."""

    best_metric = "accuracy"
    predictor = ImageClassifier

    @staticmethod
    def columns_of(settings: FinetuneSettings) -> dict[str, str]:
        """The label's column."""
        return {"label": settings.classification.label_column}

    def __init__(self, settings: FinetuneSettings, train: Manifest, validation: Manifest) -> None:
        self.settings, self.columns = settings.classification, self.columns_of(settings)
        self.classes = read_class_names_of(train, validation, self.columns["label"])
        self.config = {"class_names": self.classes.names, "class_values": list(self.classes.values)}

    @classmethod
    def new_model(cls, encoder: Encoder, config: dict[str, Any], *, label_smoothing: float = 0.0) -> Classifier:
        """An encoder and a linear layer."""
        num_classes = len(config["class_names"])
        return Classifier(encoder, num_classes=num_classes, mode=config["mode"], label_smoothing=label_smoothing)

    def training_model(self, encoder: Encoder, config: dict[str, Any]) -> Classifier:
        """With label smoothing."""
        return self.new_model(encoder, config, label_smoothing=self.settings.label_smoothing)

    def views(self, size: int) -> list[ViewSpec]:
        """A mild crop and a flip."""
        return weak_views(size, crop_scale=(self.settings.smallest_crop, 1.0))

    def to_inputs(self, images: list[Tensor], batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images and class ids."""
        labels = torch.from_numpy(self.classes.ids(batch.columns[self.columns["label"]]))
        return images[0], labels.to(device, non_blocking=True)
