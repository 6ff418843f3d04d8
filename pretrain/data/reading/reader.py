"""Rows in the order of `pretrain.data.reading.order` with bounded memory.

One `StreamReader` per canonical stream keeps one window of encoded rows for use; further windows are read
ahead within a budget of bytes (`pretrain.data.reading.ahead`). What is in memory depends on the windows, the
budget and the pages of the files, not on how the rows were grouped.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock

import numpy as np

from pretrain.data.reading.ahead import ReadAhead
from pretrain.data.reading.order import Order, Segment
from pretrain.data.reading.shards import Rows, Source

HORIZON_STEPS = 32
CLOSE_SECONDS = 0.5  # in which a closed reader notices


class StreamReader:
    """The rows of one canonical stream from a position on, epoch after epoch, window by window.

    Args:
        order: of the data set.
        shards: where the rows are read: `Shards`, or what stands in for them.
        stream: number of the stream.
        epoch, row: position: the next row to give is row `row` of the stream in epoch `epoch`.
        executor: reads the next windows while the current one is used; one task at a time for each stream.
        ahead: shared by the streams of a rank; by default this stream reads ahead alone.
    """

    def __init__(
        self,
        order: Order,
        shards: Source,
        *,
        stream: int,
        epoch: int,
        row: int,
        executor: Executor,
        ahead: ReadAhead | None = None,
    ) -> None:
        self._order, self._shards, self._stream, self._executor = order, shards, stream, executor
        self._windows = self._read_windows(epoch, row)
        self._sizes = self._sizes_of_windows(epoch, row)
        self._next_size = next(self._sizes)
        # windows that were sent for, in order: their rows and, when they are there, their content
        self._begun: deque[tuple[int, Future[_Window]]] = deque()
        self._asked: deque[tuple[int, Future[_Window]]] = deque()
        # of the windows in `_begun`; counted, because asked for very often
        self._rows_begun, self._bytes_begun = 0, 0
        self._lock, self._is_reading, self._closed = Lock(), False, False
        self._window, self._position = Rows([], [], [], {}), 0
        self._ahead = ahead or ReadAhead(max_rows=max_rows_ready(order))
        self._ahead.add(self)

    def take(self, num: int) -> list[tuple[Rows, int]]:
        """The next rows, each as (its window, its position in the window's shuffled order)."""
        taken: list[tuple[Rows, int]] = []
        while len(taken) < num:
            if self._position == len(self._window):
                # the old window is let go before the next one is waited for
                self._window, self._position = Rows([], [], [], {}), 0
                if not self._begun:
                    self._ahead.fill()
                if not self._begun:  # the budget is used up by others
                    self.begin_next()
                num_rows, future = self._begun[0]
                window = self._arrived(future)
                self._begun.popleft()
                with self._lock:
                    self._rows_begun -= num_rows
                    self._bytes_begun -= window.num_bytes
                self._window, self._position = window.rows, window.start
                self._ahead.fill()
            stop = min(self._position + num - len(taken), len(self._window))
            taken.extend((self._window, position) for position in range(self._position, stop))
            self._position = stop
        return taken

    def close(self) -> None:
        """Lets a `take` that waits in another thread raise CancelledError, so that nothing waits for a store
        that is no longer needed.
        """
        self._closed = True

    def _arrived(self, future: Future[_Window]) -> _Window:
        while not self._closed:
            with suppress(TimeoutError):
                return future.result(timeout=CLOSE_SECONDS)
            if future.done():  # a TimeoutError of the store
                return future.result()
        raise CancelledError

    def rows_ready(self) -> int:
        """Rows in memory or on their way that are not taken yet."""
        return len(self._window) - self._position + self._rows_begun

    def bytes_ahead(self) -> int:
        """Bytes of the windows that wait for use; of those on their way, what they have on average."""
        return self._bytes_begun

    def bytes_of_next(self) -> int:
        """Bytes, about, of the next window that is not on its way yet."""
        return self._about(self._next_size)

    def begin_next(self) -> None:
        """Sends for the next window."""
        future: Future[_Window] = Future()
        num_rows, self._next_size = self._next_size, next(self._sizes)
        self._begun.append((num_rows, future))
        with self._lock:
            self._rows_begun += num_rows
            self._bytes_begun += self._about(num_rows)
            self._asked.append((num_rows, future))
            if self._is_reading:
                return
            self._is_reading = True
        self._executor.submit(self._read_asked)

    def _about(self, num_rows: int) -> int:
        return max(1, int(num_rows * self._shards.mean_row_bytes))

    def _read_asked(self) -> None:
        while True:
            with self._lock:
                if not self._asked:
                    self._is_reading = False
                    return
                num_rows, future = self._asked.popleft()
            try:
                if self._closed:
                    raise CancelledError
                window = next(self._windows)
                with self._lock:
                    self._bytes_begun += window.num_bytes - self._about(num_rows)
                future.set_result(window)
            except BaseException as error:  # raised where the window is taken
                future.set_exception(error)

    def _sizes_of_windows(self, first_epoch: int, first_row: int) -> Iterator[int]:
        bounds = self._order.window_bounds(self._stream)
        first_window = int(bounds.searchsorted(first_row, side="right")) - 1
        sizes = (bounds[1:] - bounds[:-1]).tolist()
        return itertools.chain(sizes[first_window:], itertools.cycle(sizes))

    def _read_windows(self, first_epoch: int, first_row: int) -> Iterator[_Window]:
        order, stream = self._order, self._stream
        bounds = order.window_bounds(stream)
        for epoch in itertools.count(first_epoch):
            start = first_row if epoch == first_epoch else 0
            first_window = int(bounds.searchsorted(start, side="right")) - 1
            segments = order.segments(epoch, stream, int(bounds[first_window]))
            source = _SegmentRows(self._shards, segments, stopped=lambda: self._closed)
            for window in range(first_window, len(bounds) - 1):
                size = int(bounds[window + 1] - bounds[window])
                rows = _taken(source.take(size), order.window_order(epoch, stream, window, size).tolist())
                num_bytes = _num_bytes(rows)
                yield _Window(rows, start - int(bounds[window]) if window == first_window else 0, num_bytes)


@dataclass(frozen=True)
class _Window:
    """Rows in shuffled order, where reading starts among them (0 except at first), and their bytes."""

    rows: Rows
    start: int
    num_bytes: int


class _SegmentRows:
    """The rows of segments one after another; all of which rows are asked for are fetched at once."""

    def __init__(self, shards: Source, segments: Sequence[Segment], *, stopped: Callable[[], bool]) -> None:
        self._shards, self._segments, self._stopped = shards, iter(segments), stopped
        self._pieces: deque[Iterator[Rows]] = deque()
        self._num_begun = 0  # rows that are in `_rest` or will come from `_pieces`
        self._rest: Rows | None = None

    def take(self, num: int) -> Rows:
        while self._num_begun < num:
            segment = next(self._segments)
            self._pieces.append(self._shards.read(segment, stopped=self._stopped))
            self._num_begun += segment.stop - segment.start
        parts = [self._rest] if self._rest is not None else []
        while sum(map(len, parts)) < num:
            piece = next(self._pieces[0], None)
            if piece is None:
                self._pieces.popleft()
            else:
                parts.append(piece)
        whole = _joined(parts)
        self._rest = _taken(whole, range(num, len(whole))) if len(whole) > num else None
        self._num_begun -= num
        return _taken(whole, range(num)) if self._rest is not None else whole


def max_rows_ready(order: Order) -> int:
    """Rows that a stream keeps ready: those of one window, and of some steps where windows are small.
    A window has no more rows than its stream has in an epoch.
    """
    window_rows = min(order.window_rows_per_stream, order.rows_per_stream)
    return max(window_rows, HORIZON_STEPS * order.rows_per_step_and_stream)


def _num_bytes(rows: Rows) -> int:
    """Bytes of images and arrays; what else columns hold is small beside them."""
    arrays = [
        values
        for values in rows.columns.values()
        if any(isinstance(value, np.ndarray) for value in values[:1])
    ]
    return sum(len(image) for image in rows.images if image is not None) + sum(
        value.nbytes for values in arrays for value in values if isinstance(value, np.ndarray)
    )


def _joined(pieces: Sequence[Rows]) -> Rows:
    return Rows(
        row_ids=list(itertools.chain.from_iterable(piece.row_ids for piece in pieces)),
        passes=list(itertools.chain.from_iterable(piece.passes for piece in pieces)),
        images=list(itertools.chain.from_iterable(piece.images for piece in pieces)),
        columns={
            name: list(itertools.chain.from_iterable(piece.columns[name] for piece in pieces))
            for name in pieces[0].columns
        },
    )


def _taken(rows: Rows, indices: Sequence[int] | range) -> Rows:
    return Rows(
        row_ids=[rows.row_ids[i] for i in indices],
        passes=[rows.passes[i] for i in indices],
        images=[rows.images[i] for i in indices],
        columns={name: [values[i] for i in indices] for name, values in rows.columns.items()},
    )
