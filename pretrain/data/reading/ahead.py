"""Which window is read next: that of the stream that will need one soonest,
as long as a budget of bytes allows.
"""

from __future__ import annotations

import threading
from typing import Protocol

DEFAULT_BUDGET_BYTES = 256 * 2**20


class Stream(Protocol):
    """What is read ahead."""

    def rows_ready(self) -> int:
        """Rows in memory or on their way that are not taken yet."""

    def bytes_ahead(self) -> int:
        """Bytes, as far as known, of the windows that are on their way or wait for use."""

    def bytes_of_next(self) -> int:
        """Bytes, about, of the next window that is not on its way yet."""

    def begin_next(self) -> None:
        """Sends for it."""


class ReadAhead:
    """Shares a budget of bytes among the streams of a rank.

    All streams are read evenly, so the one with the fewest rows ready is the next to run dry; the windows of
    the streams end at different steps (see `Order.window_bounds`), so a few windows ahead hide the waiting
    of all. A stream that needs a window which is not on its way yet sends for it itself, whatever the
    budget, so nothing can wait for ever.

    Args:
        budget_bytes: of encoded images that wait for their use, over all streams.
        max_rows: rows that a stream has ready at most;
            small data sets would be read many epochs ahead otherwise.
    """

    def __init__(self, budget_bytes: int = DEFAULT_BUDGET_BYTES, *, max_rows: int) -> None:
        self._budget, self._max_rows = budget_bytes, max_rows
        self._streams: list[Stream] = []
        self._lock = threading.Lock()

    def add(self, stream: Stream) -> None:
        """Counts a stream in; nothing is read before the first `fill`."""
        with self._lock:
            self._streams.append(stream)

    def fill(self) -> None:
        """Sends for as many windows as the budget allows."""
        with self._lock:
            ahead = sum(stream.bytes_ahead() for stream in self._streams)
            while True:
                stream = min(self._streams, key=lambda stream: stream.rows_ready())
                cost = stream.bytes_of_next()
                if stream.rows_ready() >= self._max_rows or (ahead and ahead + cost > self._budget):
                    return
                stream.begin_next()
                ahead += cost
