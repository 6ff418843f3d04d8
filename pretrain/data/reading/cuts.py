"""Row groups on a cut between streams, fetched and decoded once for all streams
that need them at about the same time.

Streams are cut to equal length, so a row group may belong to two of them, or to many where a data set has
fewer row groups than streams. Neighbouring streams are read at the same pace;
what one of them fetched is kept for a while for the next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock

import pyarrow as pa

from pretrain.data.reading.chunks import Chunks

KEPT_BYTES = 32 * 2**20

Stopped = Callable[[], bool]


class OpenGroup:
    """A row group for all who read it. Safe to use from several threads.

    Args:
        chunks: what a store sends of it; None where it is read from disk.
    """

    def __init__(self, chunks: Future[Chunks] | None = None) -> None:
        self.chunks = chunks
        self._batches: list[pa.RecordBatch] | None = None
        self._lock = Lock()

    def decoded(self, decode: Callable[[], list[pa.RecordBatch]]) -> list[pa.RecordBatch]:
        """All its rows; the first who asks decodes, and what was sent is let go."""
        with self._lock:
            if self._batches is None:
                self._batches = decode()
                self.chunks = None
            return self._batches

    def has_failed(self) -> bool:
        chunks = self.chunks
        return (
            chunks is not None and chunks.done() and (chunks.cancelled() or chunks.exception() is not None)
        )


@dataclass
class _Kept:
    """`users` say when they need it no more; `num_rows_to_come` have not been asked for yet."""

    group: OpenGroup
    users: list[Stopped]
    num_bytes: int
    num_rows_to_come: int


class CutGroups:
    """The latest row groups on cuts, up to so many bytes as they are stored.
    Safe to use from several threads.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes, self._num_bytes = kept_bytes, 0
        self._groups: OrderedDict[int, _Kept] = OrderedDict()
        self._lock = Lock()

    def opened(
        self,
        group: int,
        *,
        num_rows: int,
        rows_of_group: int,
        num_bytes: int,
        stopped: Stopped,
        fetch: Callable[[Stopped], OpenGroup],
    ) -> OpenGroup:
        """The row group, of which `num_rows` are needed; `fetch` is called where it is not at hand.

        What fetches it should give up when all who wait for it have `stopped`.
        """
        with self._lock:
            kept = self._groups.pop(group, None)
            if kept is not None:
                self._num_bytes -= kept.num_bytes
            if kept is None or kept.group.has_failed():
                users = [stopped]
                kept = _Kept(fetch(lambda: all(user() for user in users)), users, num_bytes, rows_of_group)
            else:
                kept.users.append(stopped)
            kept.num_rows_to_come -= num_rows
            if kept.num_rows_to_come > 0:
                self._groups[group] = kept
                self._num_bytes += kept.num_bytes
            while self._num_bytes > self._kept_bytes:
                _, oldest = self._groups.popitem(last=False)
                self._num_bytes -= oldest.num_bytes
            return kept.group
