"""Pooled features of labelled images, computed by all ranks together, and the kNN probe on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cluster.errors import UserError
from cluster.place import Place
from pretrain.data.augment import normalise, to_images
from pretrain.data.loader import batches_in_sequence
from pretrain.data.manifest import load_manifest
from pretrain.data.shards import Shards
from pretrain.data.viewing import default_mean, default_std
from pretrain.data.views import CentralCrop
from pretrain.encoders import Encoder, pooled
from pretrain.training.distributed import gathered_objects
from pretrain.training.knn import knn_accuracy


@torch.no_grad()
def labelled_features(
    encoder: Encoder,
    shards: Shards,
    *,
    label_column: str,
    size: int,
    crop_share: float,
    place: Place,
    batch_size: int = 256,
    decode_threads: int = 1,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[np.ndarray, list[Any]]:
    """Features float32 [N, D] and labels of every good row of a data set, on every rank, in the data's order.

    Rows without a label are left out. The encoder is used as it is (put it into eval mode first). Without `mean` and `std`
    those of `pretrain.data.viewing` are taken.
    """
    mean, std = mean or default_mean(encoder.in_channels), std or default_std(encoder.in_channels)
    features: list[np.ndarray] = []
    labels: list[Any] = []
    for batch in batches_in_sequence(
        shards,
        CentralCrop(size, share=crop_share, channels=encoder.in_channels),
        batch_size=batch_size,
        rank=place.rank,
        world_size=place.world_size,
        decode_threads=decode_threads,
    ):
        keep = [index for index, label in enumerate(batch.columns[label_column]) if label is not None]
        if keep:
            images = normalise(to_images(batch.arrays[0][keep], place.device), mean, std)
            features.append(pooled(encoder(images)).float().cpu().numpy())
            labels.extend(batch.columns[label_column][index] for index in keep)
    own = np.concatenate(features) if features else np.zeros((0, encoder.channels[-1]), np.float32)
    parts = gathered_objects((own, labels))
    return np.concatenate([part for part, _ in parts]), [label for _, part in parts for label in part]


def class_ids(labels: Sequence[Any], classes: Sequence[Any]) -> torch.Tensor:
    """Index of each label among the classes, int64 [N]."""
    index = {label: number for number, label in enumerate(classes)}
    return torch.tensor([index[label] for label in labels], dtype=torch.int64)


class KnnProbe:
    """kNN accuracy of an encoder: the vote of neighbours in one labelled data set about the images of another.

    Raises UserError at once when a data set or its label column is not there.
    """

    def __init__(
        self,
        train_url: str,
        test_url: str,
        *,
        image_column: str,
        label_column: str,
        size: int,
        crop_share: float,
        neighbours: int,
        decode_threads: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self._shards = []
        for url in (train_url, test_url):
            manifest = load_manifest(url, columns=[image_column, label_column], image_column=image_column)
            self._shards.append(Shards(manifest, image_column=image_column, columns=[label_column]))
        self._label_column, self._size, self._crop_share = label_column, size, crop_share
        self._neighbours, self._decode_threads = neighbours, decode_threads
        self._mean, self._std = mean, std

    def __call__(self, encoder: Encoder, place: Place) -> dict[str, float]:
        """`knn_accuracy` in [0, 1]; the same on every rank."""
        (bank, bank_labels), (queries, query_labels) = (
            labelled_features(
                encoder,
                shards,
                label_column=self._label_column,
                size=self._size,
                crop_share=self._crop_share,
                place=place,
                decode_threads=self._decode_threads,
                mean=self._mean,
                std=self._std,
            )
            for shards in self._shards
        )
        if not len(bank) or not len(queries):
            raise UserError(f"no row of the kNN data has a label in column {self._label_column!r}")
        classes = sorted({*bank_labels, *query_labels}, key=str)
        accuracy = knn_accuracy(
            torch.from_numpy(bank),
            class_ids(bank_labels, classes),
            torch.from_numpy(queries),
            class_ids(query_labels, classes),
            num_classes=len(classes),
            k=self._neighbours,
        )
        return {"knn_accuracy": accuracy}
