"""Which pieces of which row groups an epoch consists of:
all of a data set, or several data sets mixed by weights.

A weight says how often each row of a data set is seen in an epoch, on average: with 2 every row comes twice,
with 0.25 every row comes once in four epochs. Each data set is an endless line of passes over it, the row
groups in another order in each pass, and an epoch takes the next `weight * rows` rows of that line. So a
weight is kept exactly and no row comes twice before all others came once. The number of the pass is part of
what augmentation is drawn from: a row that comes twice in an epoch is seen in other views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cluster.errors import UserError
from pretrain.data.hashing import permutation

# domain separation between the shuffles; those of `pretrain.data.reading.order` are 1 and 2
_PASSES = 3


@dataclass(frozen=True)
class Pieces:
    """Rows [start, stop) of row groups and the pass of their data set that each
    belongs to; four int64 arrays [P].
    """

    groups: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    passes: np.ndarray

    def reordered(self, index: np.ndarray) -> Pieces:
        """The same pieces in another order."""
        return Pieces(self.groups[index], self.starts[index], self.stops[index], self.passes[index])


class Mixture:
    """The pieces of each epoch.

    Args:
        rows_of_group: int64 [G].
        source_of_group: int [G], the data set that each row group belongs to, 0 and up.
        weights: one for each data set, above 0; None for each row once an epoch.
        seed: of the passes.

    Raises UserError when the weights do not fit the data sets.
    """

    def __init__(
        self,
        rows_of_group: np.ndarray,
        *,
        source_of_group: np.ndarray | None = None,
        weights: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        self.rows_of_group, self._seed = rows_of_group, seed
        if source_of_group is None:
            source_of_group = np.zeros(len(rows_of_group), dtype=np.int32)
        num_sources = int(source_of_group.max()) + 1
        if weights is None:
            weights = [1.0] * num_sources
        if len(weights) != num_sources:
            raise UserError(f"{len(weights)} weights for {num_sources} data sets: give one for each")
        for weight in weights:
            if not 0 < weight < math.inf:
                raise UserError(
                    f"a weight of {weight} is not possible: it must be above 0 (1 is every row once an "
                    "epoch)"
                )
        self._groups = [np.flatnonzero(source_of_group == source) for source in range(num_sources)]
        self._source_of_group = source_of_group
        self._rows = [int(rows_of_group[groups].sum()) for groups in self._groups]
        self._rows_per_epoch = [
            max(1, round(weight * rows)) for weight, rows in zip(weights, self._rows, strict=True)
        ]

    @property
    def num_rows(self) -> int:
        """Rows of an epoch, the same in each."""
        return sum(self._rows_per_epoch)

    def groups_beside(self, group: int) -> np.ndarray:
        """int64: the row groups of the data set that this one belongs to, itself among them."""
        return self._groups[int(self._source_of_group[group])]

    def pieces(self, epoch: int) -> Pieces:
        """What the epoch consists of, by row group and then by pass."""
        parts = [part for source in range(len(self._groups)) for part in self._of_source(source, epoch)]
        pieces = Pieces(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in Pieces.__annotations__)
        )
        return pieces.reordered(np.lexsort((pieces.passes, pieces.groups)))

    def _of_source(self, source: int, epoch: int) -> list[Pieces]:
        num_rows, share = self._rows[source], self._rows_per_epoch[source]
        position, end = epoch * share, (epoch + 1) * share
        parts = []
        while position < end:
            number, first = divmod(position, num_rows)
            last = min(num_rows, first + end - position)
            parts.append(self._of_pass(source, number, first, last))
            position += last - first
        return parts

    def _of_pass(self, source: int, number: int, first: int, last: int) -> Pieces:
        """Rows [first, last) of a pass."""
        groups = self._groups[source]
        # whole passes, the usual case, need no order of their own
        if first == 0 and last == self._rows[source]:
            stops = self.rows_of_group[groups]
            return Pieces(groups, np.zeros_like(stops), stops, np.full_like(stops, number))
        groups = groups[permutation(len(groups), _PASSES, self._seed, source, number)]
        ends = np.cumsum(self.rows_of_group[groups])
        begins = ends - self.rows_of_group[groups]
        chosen = (ends > first) & (begins < last)
        starts = np.maximum(begins, first)[chosen] - begins[chosen]
        stops = np.minimum(ends, last)[chosen] - begins[chosen]
        return Pieces(groups[chosen], starts, stops, np.full_like(stops, number))
