"""A finished classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from cluster.errors import UserError
from cluster.training.rank_context import RankContext
from finetune.tasks.base import Evaluation, Predictor
from finetune.tasks.classification.metrics import confusion, multi_label_scores, per_class, per_label, scores
from finetune.tasks.classification.model import Classifier
from pretrain.data.reading.annotations import name_of_class
from pretrain.data.reading.labels import ClassNames, is_multi_label
from pretrain.data.reading.shards import Shards
from pretrain.training.distributed import gathered_objects

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Classification:
    """What a classifier predicts for an image: its class, how sure it is in [0, 1],
    and the probability of every class.

    `labels` are the classes that the image shows: `label` alone, or all of those that are likely enough, the
    likeliest first (perhaps none), where an image may show several.
    """

    label: str
    score: float
    scores: dict[str, float]
    labels: list[str]


class ImageClassifier(Predictor):
    """A classifier with all it needs to predict for images."""

    result_type = Classification

    @property
    def class_names(self) -> list[str]:
        """Texts of the classes, in the order of the logits."""
        return list(self.config["class_names"])

    @property
    def multi_label(self) -> bool:
        """Whether an image may show any number of classes."""
        return bool(self.config.get("multi_label", False))

    @property
    def threshold(self) -> float:
        """The probability from which on one of several classes is said to be there."""
        return float(self.config.get("threshold", 0.5))

    def results(self, arrays: list[np.ndarray], geometry_VB5: np.ndarray | None) -> list[Classification]:
        """The class of each image."""
        results, names = [], self.class_names
        for row in self.probabilities(arrays[0]).tolist():
            best = max(range(len(row)), key=row.__getitem__)
            scores = dict(zip(names, row, strict=True))
            results.append(
                Classification(label=names[best], score=row[best], scores=scores, labels=self.shown(row))
            )
        return results

    def shown(self, probabilities: Sequence[float]) -> list[str]:
        """The classes that probabilities show, the likeliest first: one, or all that are likely enough."""
        ranked = sorted(range(len(probabilities)), key=lambda index: -probabilities[index])
        if self.multi_label:
            ranked = [index for index in ranked if probabilities[index] >= self.threshold]
        return [self.class_names[index] for index in (ranked if self.multi_label else ranked[:1])]

    @torch.no_grad()
    def probabilities(self, crops: np.ndarray) -> Tensor:
        """uint8 [B, C, size, size] -> probabilities [B, num_classes] on the host."""
        return self.as_probabilities(self.logits(crops)).cpu()

    def as_probabilities(self, logits_BC: Tensor) -> Tensor:
        """Probabilities [B, num_classes] of logits."""
        return logits_BC.sigmoid() if self.multi_label else logits_BC.softmax(1)

    @torch.no_grad()
    def logits(self, crops: np.ndarray) -> Tensor:
        """uint8 [B, C, size, size] -> [B, num_classes]."""
        return cast(Classifier, self.model).logits(self.images(crops))

    def evaluate(self, shards: Shards, context: RankContext, *, decode_threads: int = 1) -> Evaluation:
        """Scores, precision and recall by class; the confusion matrix where an image shows one class."""
        logits, labels, unknown = self.evaluated(shards, context, decode_threads=decode_threads)
        details: dict[str, Any] = {"validation_images": len(labels), "class_names": self.class_names}
        if unknown:
            details["unknown_classes"] = dict(sorted(unknown.items()))
        if self.multi_label:
            details["per_class"] = per_label(logits, labels, self.class_names, threshold=self.threshold)
            return Evaluation(multi_label_scores(logits, labels, threshold=self.threshold), details)
        matrix = confusion(logits, labels)
        details |= {"per_class": per_class(matrix, self.class_names), "confusion_matrix": matrix.tolist()}
        return Evaluation(scores(logits, labels), details)

    def evaluated(
        self, shards: Shards, context: RankContext, *, decode_threads: int = 1
    ) -> tuple[Tensor, Tensor, Counter[str]]:
        """Logits float32 [N, num_classes] of a whole data set, on every rank, whatever their number, and
        what is true: class ids [N], or float32 [N, num_classes] where an image may show several.

        Images of a class that the model does not know are left out (of several classes, those that it does
        not know); they are counted by its name.
        """
        column = self.columns["label"]
        classes = ClassNames(tuple(self.config["class_values"]), self.class_names)
        if is_multi_label(shards.manifest, column) != self.multi_label:
            kind = "lists of classes" if self.multi_label else "one class an image"
            raise UserError(
                f"the model was trained on {kind}, and column {column!r} of the data is of another kind"
            )
        true_of = classes.multi_hot if self.multi_label else classes.ids
        logits, labels, unknown = [np.zeros((0, len(classes)), np.float32)], [true_of([])], Counter[str]()
        for batch in self.batches(
            shards, context, batch_size=EVALUATION_BATCH, decode_threads=decode_threads
        ):
            values, keep_N = batch.columns[column], np.ones(len(batch.row_ids), bool)
            if self.multi_label:
                unknown.update(
                    name_of_class(one) for row in values for one in row if not classes.known([one])[0]
                )
                values = [[one for one in row if classes.known([one])[0]] for row in values]
            else:
                keep_N = classes.known(values)
                unknown.update(
                    name_of_class(one) for one, kept in zip(values, keep_N, strict=True) if not kept
                )
                values = [one for one, kept in zip(values, keep_N, strict=True) if kept]
            if keep_N.any():
                logits.append(self.logits(batch.arrays[0][keep_N]).float().cpu().numpy())
                labels.append(true_of(values))
        parts = gathered_objects((np.concatenate(logits), np.concatenate(labels), unknown))
        all_labels = np.concatenate([part for _, part, _ in parts])
        all_unknown = sum((part for _, _, part in parts), Counter[str]())
        if not len(all_labels):
            raise UserError(
                "no image of the data is of a class that the model knows "
                f"({', '.join(self.class_names[:20])}); there are {', '.join(list(all_unknown)[:20])}"
                if all_unknown
                else "no image of the validation data can be decoded; `python -m pretrain.data check` says "
                "why"
            )
        all_logits = np.concatenate([part for part, _, _ in parts])
        return torch.from_numpy(all_logits), torch.from_numpy(all_labels), all_unknown
