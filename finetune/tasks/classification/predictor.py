"""A finished classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from cluster.errors import UserError
from cluster.place import Place
from finetune.tasks.base import Judgement, Predictor
from finetune.tasks.classification.metrics import confusion, per_class, scores
from finetune.tasks.classification.model import Classifier
from pretrain.data.labels import ClassNames
from pretrain.data.loader import batches_in_sequence
from pretrain.data.shards import Shards
from pretrain.training.distributed import gathered_objects

JUDGE_BATCH = 256


@dataclass(frozen=True)
class Classification:
    """What a classifier says of an image: its class, how sure it is in [0, 1], and the probability of every class."""

    label: str
    score: float
    scores: dict[str, float]


class ImageClassifier(Predictor):
    """A classifier with all it needs to judge pictures."""

    result_type = Classification

    @property
    def class_names(self) -> list[str]:
        """Texts of the classes, in the order of the logits."""
        return list(self.config["class_names"])

    def results(self, arrays: list[np.ndarray], geometry_VB5: np.ndarray | None) -> list[Classification]:
        """The class of each image."""
        results = []
        for row in self.probabilities(arrays[0]).tolist():
            best = max(range(len(row)), key=row.__getitem__)
            scores = dict(zip(self.class_names, row, strict=True))
            results.append(Classification(label=self.class_names[best], score=row[best], scores=scores))
        return results

    @torch.no_grad()
    def probabilities(self, crops: np.ndarray) -> Tensor:
        """uint8 [B, C, size, size] -> probabilities [B, num_classes] on the host."""
        return self.as_probabilities(self.logits(crops)).cpu()

    def as_probabilities(self, logits_BC: Tensor) -> Tensor:
        """Probabilities [B, num_classes] of logits."""
        return logits_BC.softmax(1)

    @torch.no_grad()
    def logits(self, crops: np.ndarray) -> Tensor:
        """uint8 [B, C, size, size] -> [B, num_classes]."""
        return cast(Classifier, self.model).logits(self.images(crops))

    def judge(self, shards: Shards, place: Place, *, decode_threads: int = 1) -> Judgement:
        """Scores, the confusion matrix, and precision and recall of each class."""
        logits, labels = self.judged(shards, place, decode_threads=decode_threads)
        matrix = confusion(logits, labels)
        details = {
            "validation_images": len(labels),
            "per_class": per_class(matrix, self.class_names),
            "class_names": self.class_names,
            "confusion_matrix": matrix.tolist(),
        }
        return Judgement(scores(logits, labels), details)

    def judged(self, shards: Shards, place: Place, *, decode_threads: int = 1) -> tuple[Tensor, Tensor]:
        """Logits float32 [N, num_classes] and class ids [N] of a whole data set, on every rank, whatever their number."""
        column, classes = self.columns["label"], ClassNames(tuple(self.config["class_values"]), self.class_names)
        logits = [np.zeros((0, len(classes.names)), np.float32)]
        labels = [np.zeros(0, np.int64)]
        for batch in batches_in_sequence(
            shards,
            self.transform,
            batch_size=JUDGE_BATCH,
            rank=place.rank,
            world_size=place.world_size,
            decode_threads=decode_threads,
        ):
            if len(batch.row_ids):
                logits.append(self.logits(batch.arrays[0]).float().cpu().numpy())
                labels.append(classes.ids(batch.columns[column]))
        parts = gathered_objects((np.concatenate(logits), np.concatenate(labels)))
        all_labels = np.concatenate([part for _, part in parts])
        if not len(all_labels):
            raise UserError("no image of the validation data can be decoded; `python -m pretrain.data check` says why")
        return torch.from_numpy(np.concatenate([part for part, _ in parts])), torch.from_numpy(all_labels)
