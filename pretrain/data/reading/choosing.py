"""Which rows are used: few labels, equal fractions of classes, rare classes several times. Pure functions of
row ids and a seed.

Every row has a rank by a hash of (seed, row id). Who takes fewer rows takes those of lower rank, so a small
choice is part of every larger one, and it does not depend on ranks, workers or epochs.
"""

from __future__ import annotations

import numpy as np

from pretrain.data.hashing import hash64

# domain separation: the shuffles of `order` and `mixing` are 1 to 3
_CHOICE = 4


def fraction_of_rows(
    num_rows: int, fraction: float, *, seed: int, classes_N: np.ndarray | None = None
) -> np.ndarray:
    """Row ids int64, sorted: `fraction` of all rows, at least one;
    of each class where `classes_N` (int64) tells them.
    """
    classes_N = np.zeros(num_rows, np.int64) if classes_N is None else classes_N
    counts = np.bincount(classes_N)
    return _first_of_each(classes_N, np.maximum(1, np.round(fraction * counts)).astype(np.int64), seed=seed)


def rows_of_each_class(classes_N: np.ndarray, num: int, *, seed: int) -> np.ndarray:
    """Row ids int64, sorted: `num` of each class, or all that a smaller class has."""
    return _first_of_each(classes_N, np.full(int(classes_N.max()) + 1, num), seed=seed)


def balanced_rows(row_ids: np.ndarray, classes_M: np.ndarray, *, seed: int) -> np.ndarray:
    """Row ids int64, sorted, with repetitions: as many of each class as the largest has,
    each row of it equally often but one.

    Args:
        row_ids: int64 [M], sorted, the rows to choose from.
        classes_M: their classes.
    """
    counts = np.bincount(classes_M)
    largest, own = counts.max(), counts[classes_M]
    position = _position_in_class(row_ids, classes_M, seed=seed)
    return np.repeat(row_ids, largest // own + (position < largest % own))


def _first_of_each(classes_N: np.ndarray, quota_of_class: np.ndarray, *, seed: int) -> np.ndarray:
    row_ids = np.arange(len(classes_N))
    return row_ids[_position_in_class(row_ids, classes_N, seed=seed) < quota_of_class[classes_N]]


def _position_in_class(row_ids: np.ndarray, classes: np.ndarray, *, seed: int) -> np.ndarray:
    """Where each row stands among those of its class, by the hash."""
    order = np.lexsort((hash64(_CHOICE, seed, row_ids), classes))
    counts = np.bincount(classes)
    starts = np.cumsum(counts) - counts
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order)) - starts[classes[order]]
    return position
