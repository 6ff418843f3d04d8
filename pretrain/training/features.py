"""Pooled features of images, computed by all ranks together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.training.rank_context import RankContext
from pretrain.data.reading.in_sequence import batches_in_sequence
from pretrain.data.reading.shards import Shards
from pretrain.data.views.augment import normalised
from pretrain.data.views.random_views import CentralCrop
from pretrain.data.views.viewing import default_mean, default_std
from pretrain.encoders import Encoder, pooled
from pretrain.training.distributed import gathered_objects
from pretrain.training.stepping import autocast_for


@torch.no_grad()
def labelled_features(
    encoder: Encoder,
    shards: Shards,
    *,
    label_column: str | None,
    size: int,
    crop_fraction: float,
    context: RankContext,
    batch_size: int = 256,
    decode_threads: int = 1,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    precision: str = "float32",
) -> tuple[np.ndarray, list[Any]]:
    """Features float32 [N, D] and labels of every good row of a data set, on every rank,
    in the data's order.

    Rows without a label are left out; without `label_column` none is, and there are no labels. The encoder
    is used as it is (put it into eval mode first), in the `precision` of training, see `autocast_for`.
    Without `mean` and `std` those of `pretrain.data.views.viewing` are taken.
    """
    autocast = autocast_for(precision, context.device)
    mean, std = mean or default_mean(encoder.in_channels), std or default_std(encoder.in_channels)
    features: list[np.ndarray] = []
    labels: list[Any] = []
    for batch in batches_in_sequence(
        shards,
        CentralCrop(size, fraction=crop_fraction, channels=encoder.in_channels),
        batch_size=batch_size,
        rank=context.rank,
        world_size=context.world_size,
        decode_threads=decode_threads,
    ):
        keep = list(range(len(batch.row_ids)))
        if label_column is not None:
            column = batch.columns[label_column]
            keep = [index for index in keep if column[index] is not None]
            labels.extend(column[index] for index in keep)
        if keep:
            images = normalised(batch.arrays[0][keep], context.device, mean, std)
            # on an accelerator encoders are compiled for each size of a batch
            size_of_pass = len(images) if context.device.type == "cpu" else batch_size
            with autocast():
                features.append(pooled_features(encoder, images, size_of_pass).cpu().numpy())
    own = np.concatenate(features) if features else np.zeros((0, encoder.channels[-1]), np.float32)
    parts = gathered_objects((own, labels))
    return np.concatenate([part for part, _ in parts]), [label for _, part in parts for label in part]


def pooled_features(encoder: Encoder, images_BCHW: Tensor, batch_size: int) -> Tensor:
    """Features float32 [B, D] of at most `batch_size` images, in a batch of that size padded with zeros."""
    missing = batch_size - len(images_BCHW)
    padded = F.pad(images_BCHW, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else images_BCHW
    return pooled(encoder(padded))[: len(images_BCHW)].float()


def class_ids(labels: Sequence[Any], classes: Sequence[Any]) -> torch.Tensor:
    """Index of each label among the classes, int64 [N]."""
    index = {label: number for number, label in enumerate(classes)}
    return torch.tensor([index[label] for label in labels], dtype=torch.int64)
