"""Strides of the pyramid and anchors, fitted to the boxes of the training data at the
size in which the model sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from cluster.errors import UserError

# halvings below an encoder's finest stride, and doublings above its coarsest, that a pyramid can do
BEYOND = 2


def possible_strides(encoder_strides: Sequence[int]) -> list[int]:
    """The strides that a pyramid on an encoder's maps can have: the encoder's own, and some beyond them."""
    own = sorted(set(encoder_strides))
    finer = [own[0] // 2**times for times in range(BEYOND, 0, -1) if own[0] % 2**times == 0]
    return [*finer, *own, *(own[-1] * 2**times for times in range(1, BEYOND + 1))]


def check_strides(strides: Sequence[int], encoder_strides: Sequence[int]) -> None:
    """Raises UserError when a pyramid on an encoder's maps cannot have these strides."""
    possible = possible_strides(encoder_strides)
    doubling = all(b == 2 * a for a, b in pairwise(strides))
    if not strides or not doubling or not set(strides) <= set(possible):
        raise UserError(
            f"detection.strides={list(strides)} is not possible: give strides of which each is twice the "
            f"one before, of {', '.join(map(str, possible))} (the encoder's maps have "
            f"{', '.join(map(str, encoder_strides))})"
        )


def fit_strides(sides_N: np.ndarray, encoder_strides: Sequence[int]) -> list[int]:
    """Strides of a pyramid for boxes of these sides (pixels, square root of their area), finest first.

    The finest puts two positions on the side of small boxes (the second percentile), the coarsest four on
    that of large ones (the 98th), about as FPN (https://arxiv.org/abs/1612.03144) and FCOS
    (https://arxiv.org/abs/1904.01355) do on COCO.
    """
    possible = possible_strides(encoder_strides)
    small, large = np.quantile(sides_N, [0.02, 0.98])
    finest = max((stride for stride in possible if stride <= small / 2), default=possible[0])
    coarsest = max((stride for stride in possible if finest <= stride <= large / 4), default=finest)
    return [stride for stride in possible if finest <= stride <= coarsest]


def fit_anchors(shapes_N2: np.ndarray, num_levels: int, num_a_level: int) -> list[list[list[float]]]:
    """Width and height of `num_a_level` anchors for each level, finest first, in the unit of `shapes_N2`.

    The centres of k-means over the logarithms of width and height, so that a box twice as large as its
    anchor counts as much as one half as large; smaller ones go to finer levels.
    """
    from sklearn.cluster import KMeans  # takes a second to import

    num = num_levels * num_a_level
    logs_N2 = np.log(np.maximum(shapes_N2, 1e-6))
    num_clusters = min(num, len(np.unique(logs_N2, axis=0)))
    centres = np.exp(KMeans(num_clusters, n_init=10, random_state=0).fit(logs_N2).cluster_centers_)
    centres = centres[np.argsort(centres.prod(1), kind="stable")]
    spread = np.linspace(0, num_clusters - 1, num).round().astype(int)  # repeats some when there are too few
    return [
        [[round(float(side), 6) for side in shape] for shape in centres[level]]
        for level in spread.reshape(num_levels, num_a_level)
    ]
