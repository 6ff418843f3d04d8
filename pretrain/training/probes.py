"""What an encoder knows, measured on frozen features:
kNN and a linear probe where there are labels, RankMe where not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cluster.errors import UserError
from cluster.training.rank_context import RankContext
from pretrain.data.reading.manifest import Manifest, load_manifest
from pretrain.data.reading.shards import Shards
from pretrain.encoders import Encoder
from pretrain.training.features import class_ids, labelled_features
from pretrain.training.health import effective_rank
from pretrain.training.knn import knn_accuracy
from pretrain.training.linear_probe import linear_accuracy

UNTRAINED = "untrained"  # ends the names of scores of the weights that a run began with


class LabelProbe:
    """What features of one labelled data set tell of another:
    by a vote of neighbours, and by a linear classifier.

    Raises UserError at once when a data set or its label column is not there.
    """

    def __init__(
        self,
        train_url: str,
        test_url: str,
        *,
        image_column: str,
        label_column: str,
        neighbours: int,
        **how: Any,
    ) -> None:
        """`how` goes to `labelled_features`."""
        self._shards = []
        for url in (train_url, test_url):
            manifest = load_manifest(url, columns=[image_column, label_column], image_column=image_column)
            self._shards.append(Shards(manifest, image_column=image_column, columns=[label_column]))
        self._label_column, self._neighbours, self._how = label_column, neighbours, how

    def __call__(self, encoder: Encoder, context: RankContext, *, linear: bool) -> dict[str, float]:
        """`knn_accuracy` and, if wanted, `linear_accuracy`, in [0, 1]; the same on every rank."""
        (train, train_labels), (test, test_labels) = (
            labelled_features(encoder, shards, label_column=self._label_column, context=context, **self._how)
            for shards in self._shards
        )
        if not len(train) or not len(test):
            raise UserError(f"no row of the kNN data has a label in column {self._label_column!r}")
        classes = sorted({*train_labels, *test_labels}, key=str)
        given = [
            torch.from_numpy(train).to(context.device),
            class_ids(train_labels, classes).to(context.device),
            torch.from_numpy(test).to(context.device),
            class_ids(test_labels, classes).to(context.device),
        ]
        scores = {"knn_accuracy": knn_accuracy(*given, num_classes=len(classes), k=self._neighbours)}
        if linear:
            scores["linear_accuracy"] = linear_accuracy(*given, num_classes=len(classes))
        return scores


def rankme(
    encoder: Encoder,
    manifest: Manifest,
    context: RankContext,
    *,
    num_images: int,
    image_column: str,
    **how: Any,
) -> float:
    """RankMe of an encoder's pooled features of so many images: how many dimensions they use, from 1 to D.

    Among runs on the same data it goes with linear probe accuracy, and needs no labels (Garrido et al.,
    https://arxiv.org/abs/2210.02885, who take 25,600). Row groups are taken from the whole of a larger data
    set. The same on every rank; `how` goes to `labelled_features`.
    """
    shards = Shards(manifest.sample(num_images), image_column=image_column)
    features, _ = labelled_features(encoder, shards, label_column=None, context=context, **how)
    chosen = np.linspace(0, len(features) - 1, min(num_images, len(features))).astype(np.int64)
    return effective_rank(torch.from_numpy(features[chosen]).double()) if len(chosen) else 0.0
