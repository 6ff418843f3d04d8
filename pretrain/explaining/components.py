"""Principal components of features as colours, as DINOv2 shows them (https://arxiv.org/abs/2304.07193)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def as_colours(maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """uint8 [H, W, 3] of each feature map [C, H, W]:
    red, green and blue are the first three components over all of them.

    Equal colours mean equal features, in whichever map.
    Components that are not there (too few features) stay at half.
    """
    features_NC = np.concatenate([features.reshape(len(features), -1).T for features in maps]).astype(
        np.float64
    )
    features_NC = features_NC - features_NC.mean(0)
    variances, vectors = np.linalg.eigh(features_NC.T @ features_NC / len(features_NC))
    first = np.argsort(variances)[::-1][:3]
    vectors_C3 = vectors[:, first]
    # an eigenvector's sign is arbitrary: its largest entry is made positive
    vectors_C3 = vectors_C3 * np.sign(
        vectors_C3[np.abs(vectors_C3).argmax(0), np.arange(vectors_C3.shape[1])]
    )
    scores_NK = features_NC @ vectors_C3
    low, high = np.percentile(scores_NK, [2, 98], axis=0)
    flat = high - low <= 1e-9 * max(1.0, float(np.abs(scores_NK).max()))
    fractions_NK = np.where(flat, 0.5, (scores_NK - low) / np.where(flat, 1.0, high - low)).clip(0, 1)
    colours_N3 = np.full((len(features_NC), 3), 128, np.uint8)
    colours_N3[:, : fractions_NK.shape[1]] = np.round(fractions_NK * 255)
    sizes = [features.shape[1:] for features in maps]
    parts = np.split(colours_N3, np.cumsum([height * width for height, width in sizes])[:-1])
    return [part.reshape(*size, 3) for part, size in zip(parts, sizes, strict=True)]
