"""The order of samples: a pure function of (row-group table, seed, epoch), in numpy,
without reading anything.

Each epoch the row groups (of several data sets by their weights, see `pretrain.data.reading.mixing`) are
permuted and laid end to end; the line is cut into `num_streams` streams of equal length, so a row group
belongs to one stream (except those on a cut). A stream is cut into windows, and rows are shuffled inside
their window. The global batch of a step is the next `batch_size_global / num_streams` rows of stream 0, then
of stream 1, and so on. Ranks own contiguous streams, so the global batch is the concatenation of the ranks'
batches in the order of the ranks: the sequence of global batches depends neither on how many ranks
there are nor on how many threads read.

Row ids number the rows of the data set in the order of the manifest. The position of a run is one integer,
`samples_seen`; see `epoch_and_step`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from cluster.errors import UserError
from pretrain.data.hashing import hash64, permutation
from pretrain.data.reading.mixing import Mixture, Pieces

# domain separation: a shuffle of groups and one of rows never share a hash (3 is that of
# `pretrain.data.reading.mixing`)
_GROUPS, _ROWS, _STAND_INS = 1, 2, 4


@dataclass(frozen=True)
class Segment:
    """Neighbouring rows of one row group: rows [start,
    stop) of group `group` (index into the manifest's table).

    `pass_number` counts the passes over the group's data set; it is the epoch where every row comes once an
    epoch. `is_shared` says that other streams read from the same group at about the same time.
    """

    group: int
    start: int
    stop: int
    pass_number: int = 0
    is_shared: bool = field(default=False, compare=False)


def default_num_streams(batch_size_global: int, max_streams: int = 64) -> int:
    """The largest divisor of the global batch up to 64: divisible by the usual numbers of ranks."""
    return max(n for n in range(1, min(max_streams, batch_size_global) + 1) if batch_size_global % n == 0)


class Order:
    """The sequence of global batches of every epoch.

    Args:
        rows_of_group: int64 [G], rows of each row group in the manifest's order.
        batch_size_global: rows of one step over all ranks; must be divisible by `num_streams`.
        num_streams: fixed for a run, so that the order is; the number of ranks must divide it.
        window_rows: rows over all streams inside which rows are shuffled (it bounds the memory of reading).
        seed: of the shuffles.
        source_of_group, weights: which data set each group belongs to and how often its rows come in an
            epoch, see `pretrain.data.reading.mixing`; by default every row comes once.

    Raises UserError when the batch is larger than an epoch or not divisible by the streams,
    or the weights do not fit.
    """

    def __init__(
        self,
        rows_of_group: np.ndarray,
        *,
        batch_size_global: int,
        num_streams: int,
        window_rows: int,
        seed: int,
        source_of_group: np.ndarray | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.rows_of_group = np.asarray(rows_of_group, dtype=np.int64)
        self._mixture = Mixture(
            self.rows_of_group, source_of_group=source_of_group, weights=weights, seed=seed
        )
        self.num_rows = self._mixture.num_rows
        if batch_size_global > self.num_rows:
            raise UserError(
                f"training.batch_size_global={batch_size_global} is larger than the data ({self.num_rows} "
                f"rows); choose at most {self.num_rows}"
            )
        if batch_size_global % num_streams:
            fitting = default_num_streams(batch_size_global)
            raise UserError(
                f"training.batch_size_global={batch_size_global} is not divisible by "
                f"data.num_streams={num_streams}; {fitting} streams would fit, or leave data.num_streams at "
                "0 to have it chosen"
            )
        self.batch_size_global = batch_size_global
        self.num_streams = num_streams
        self.seed = seed
        self.steps_per_epoch = self.num_rows // batch_size_global
        self.rows_per_step_and_stream = batch_size_global // num_streams
        self.rows_per_stream = self.steps_per_epoch * self.rows_per_step_and_stream
        self.window_rows_per_stream = max(1, window_rows // num_streams)
        self._start_of_group = np.concatenate([[0], np.cumsum(self.rows_of_group)])
        self._layout = lru_cache(maxsize=2)(self._make_layout)

    @property
    def samples_per_epoch(self) -> int:
        """Rows seen in one epoch: all but the dropped tail, which differs from epoch to epoch."""
        return self.steps_per_epoch * self.batch_size_global

    def epoch_and_step(self, samples_seen: int) -> tuple[int, int]:
        """Where a run that has seen so many samples stands. Raises UserError where it is between batches."""
        epoch, rest = divmod(samples_seen, self.samples_per_epoch)
        if rest % self.batch_size_global:
            raise UserError(
                f"the run stands at {samples_seen} samples, which is not between two batches of "
                f"{self.batch_size_global}; continue with the batch size it was started with"
            )
        return epoch, rest // self.batch_size_global

    @property
    def world_sizes(self) -> list[int]:
        """The possible numbers of ranks, rising: those that share the streams evenly."""
        return [n for n in range(1, self.num_streams + 1) if self.num_streams % n == 0]

    def streams_of_rank(self, rank: int, world_size: int) -> range:
        """The contiguous streams a rank owns. Raises UserError when the ranks do not divide the streams."""
        if self.num_streams % world_size:
            raise UserError(
                f"{world_size} workers do not divide the {self.num_streams} streams of a global batch of "
                f"{self.batch_size_global}; possible numbers of workers: "
                f"{', '.join(map(str, self.world_sizes))}"
            )
        share = self.num_streams // world_size
        return range(rank * share, (rank + 1) * share)

    def window_bounds(self, stream: int) -> np.ndarray:
        """int64 [K + 1]: window k of a stream holds its rows [bounds[k], bounds[k + 1]).

        The first window is shortened by a share that grows with the stream's number, so that the windows of
        different streams end at different steps and reading is even instead of coming in bursts.
        """
        size = self.window_rows_per_stream
        first = max(1, size * (stream + 1) // self.num_streams)
        inner = np.arange(first, self.rows_per_stream, size, dtype=np.int64)
        return np.concatenate([[0], inner, [self.rows_per_stream]])

    def segments(self, epoch: int, stream: int, start: int = 0, stop: int | None = None) -> list[Segment]:
        """The pieces of row groups in rows [start, stop) of a stream, before the shuffle in windows."""
        pieces, ends = self._layout(epoch)
        position = stream * self.rows_per_stream + start
        stop = stream * self.rows_per_stream + (self.rows_per_stream if stop is None else stop)
        segments = []
        piece = int(np.searchsorted(ends, position, side="right"))
        while position < stop:
            end, stop_in_group, group = int(ends[piece]), int(pieces.stops[piece]), int(pieces.groups[piece])
            # a piece ends at row `stops` of its group, and at `ends` of the line
            segments.append(
                Segment(
                    group=group,
                    start=position - end + stop_in_group,
                    stop=min(end, stop) - end + stop_in_group,
                    pass_number=int(pieces.passes[piece]),
                    # longer streams read the two sides of a cut at the beginning and at the end of an epoch
                    is_shared=self.rows_per_stream < 2 * int(self.rows_of_group[group]),
                )
            )
            position = min(end, stop)
            piece += 1
        return segments

    def window_order(self, epoch: int, stream: int, window: int, num_rows: int) -> np.ndarray:
        """int64 [num_rows]: the order in which the rows of a window are taken."""
        return permutation(num_rows, _ROWS, self.seed, epoch, stream, window)

    def stand_ins(self, row_id: int, pass_number: int) -> Iterator[Segment]:
        """The other rows of a row's data set, one a segment, in an order that the seed,
        the pass and the row alone decide.

        Each comes once, so taking the first good one finds one as long as there is any.
        """
        own = int(np.searchsorted(self._start_of_group, row_id, side="right")) - 1
        groups = self._mixture.groups_beside(own)
        ends = np.cumsum(self.rows_of_group[groups])
        num_rows = int(ends[-1])
        drawn = hash64(_STAND_INS, self.seed, pass_number, row_id, np.arange(2))
        first, stride = int(drawn[0] % num_rows), 1 + int(drawn[1] % max(1, num_rows - 1))
        while math.gcd(stride, num_rows) > 1:  # steps of such a length come to every row before they repeat
            stride += 1
        for number in range(num_rows):
            position = (first + number * stride) % num_rows
            piece = int(np.searchsorted(ends, position, side="right"))
            group = int(groups[piece])
            row = position - int(ends[piece]) + int(self.rows_of_group[group])
            if self._start_of_group[group] + row != row_id:
                yield Segment(group, row, row + 1, pass_number)

    def row_ids(self, epoch: int, stream: int) -> np.ndarray:
        """int64 [rows_per_stream]: the row ids of a whole stream in the order they are taken."""
        ids = np.concatenate(
            [
                self._start_of_group[s.group] + np.arange(s.start, s.stop)
                for s in self.segments(epoch, stream)
            ]
        )
        bounds = self.window_bounds(stream)
        for window in range(len(bounds) - 1):
            part = ids[bounds[window] : bounds[window + 1]]
            ids[bounds[window] : bounds[window + 1]] = part[
                self.window_order(epoch, stream, window, len(part))
            ]
        return ids

    def epoch_batches(self, epoch: int) -> np.ndarray:
        """int64 [steps_per_epoch, batch_size_global]: the row ids of every global batch, for tests."""
        by_stream = [
            self.row_ids(epoch, stream).reshape(self.steps_per_epoch, self.rows_per_step_and_stream)
            for stream in range(self.num_streams)
        ]
        return np.concatenate(by_stream, axis=1)

    def _make_layout(self, epoch: int) -> tuple[Pieces, np.ndarray]:
        pieces = self._mixture.pieces(epoch)
        pieces = pieces.reordered(permutation(len(pieces.groups), _GROUPS, self.seed, epoch))
        return pieces, np.cumsum(pieces.stops - pieces.starts)
