"""Messages between the driver and its workers:
a small actor that passes on records, failures and the wish to stop.

The actor is a plain class (`cluster.training.ray_launch` makes the Ray actor of it), asks for no CPU, and
both sides wait in it rather than poll it. Losing it costs console lines and Ctrl-C, never training:
each end gives up quietly.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.training.rank_context import Record

logger = logging.getLogger(__name__)

SEND_EVERY_SECONDS = 0.3
SEND_TIMEOUT_SECONDS = 30.0  # a channel that hangs this long is as good as lost
LONGEST_WAIT_SECONDS = 5.0  # how long `next_records` holds a call open


@dataclass(frozen=True)
class Beginning:
    """What a worker group is told when it starts."""

    attempt: int
    restarts: tuple[str, ...]
    over: bool  # the run has already failed for good: leave at once
    position: int | None = None  # how far the attempt before was heard to come ...
    silent_seconds: float = 0.0  # ... and how long ago, by this actor's clock
    num_asked: int = 0  # how often a checkpoint had been asked for


@dataclass
class Failure:
    """One worker's exception: the text is its traceback, without the frames of ours and of Ray."""

    rank: int
    world_size: int
    summary: str
    text: str
    unavailable: str | None = None  # what a user is to read when a store did not answer


@dataclass
class Outcome:
    """What the channel knows when the run is over."""

    fatal: bytes | None = None  # a pickled UserError or RunStopped
    failures: list[Failure] = field(default_factory=list)  # of the last attempt, in order of arrival
    num_attempts: int = 0


class Channel:
    """The actor's state. Methods are coroutines of one event loop, so that no lock is needed."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._arrived = asyncio.Event()
        self._num_asked, self._asked = 0, asyncio.Event()  # for checkpoints
        self._words = {"stop": asyncio.Event(), "abort": asyncio.Event()}
        self._closed = False
        self._restarts: list[str] = []
        self._deaths: list[str] = []  # why the present attempt seems to have ended, seen from outside ...
        self._failures: list[str] = []  # ... and from inside
        self._num_workers = 0
        self._lost_nodes: dict[str, str] = {}
        self._position: int | None = None
        self._heard = 0.0  # when the position came, or the attempt began
        self._outcome = Outcome()

    async def begin(self, num_workers: int = 1, lost_nodes: Mapping[str, str] | None = None) -> Beginning:
        """Called once by each worker group; each call after the first is a restart.

        `lost_nodes` are all that are gone by now (id -> address): workers hear of a dead node by a broken
        connection, long before Ray misses it.
        """
        now = time.monotonic()
        if self._outcome.num_attempts:
            resized = f"Ray changed the number of workers from {self._num_workers} to {num_workers}"
            other = resized if num_workers != self._num_workers else "Ray replaced the workers"
            # a death or else the first failure is the cause;
            # the others are mostly its echo (connection reset by peer)
            reason = (*self._deaths, *self._failures, other)[0]
            gone = sorted(
                address for node, address in (lost_nodes or {}).items() if node not in self._lost_nodes
            )
            self._restarts.append(f"{reason} (gone since: node {', '.join(gone)})" if gone else reason)
        self._lost_nodes = dict(lost_nodes or {})
        beginning = Beginning(
            len(self._restarts),
            tuple(self._restarts),
            over=self._outcome.fatal is not None,
            position=self._position,
            silent_seconds=now - self._heard if self._outcome.num_attempts else 0.0,
            num_asked=self._num_asked,
        )
        self._deaths, self._failures, self._outcome.failures = [], [], []
        self._outcome.num_attempts += 1
        self._num_workers, self._position = num_workers, None
        # an attempt that does not move prolongs the silence of the one before
        self._heard = self._heard or now
        return beginning

    async def note_death(self, reason: str) -> None:
        """Why the present attempt ends, seen from outside (a worker was killed, a node is gone)."""
        self._deaths.append(reason)

    async def fail(self, failure: Failure, fatal: bytes | None) -> None:
        """A worker's exception; `fatal` when trying again cannot help."""
        self._failures.append(f"worker {failure.rank}: {failure.summary}")
        self._outcome.failures.append(failure)
        self._outcome.fatal = self._outcome.fatal or fatal

    async def outcome(self) -> Outcome:
        """What happened so far."""
        return self._outcome

    async def send(self, records: list[Record], position: int | None = None) -> None:
        """Rank 0's records, in order, and how far it is."""
        if position is not None:
            self._position, self._heard = position, time.monotonic()
        if records:
            self._records.extend(records)
            self._arrived.set()

    async def next_records(self) -> tuple[list[Record], bool]:
        """Waits a while for records; the flag says that no more will come."""
        if not self._records and not self._closed:
            try:
                await asyncio.wait_for(self._arrived.wait(), LONGEST_WAIT_SECONDS)
            except TimeoutError:
                return [], False
        self._arrived.clear()
        records, self._records = self._records, []
        return records, self._closed

    async def close(self) -> None:
        """No more records come: lets `next_records` return what is left."""
        self._closed = True
        self._arrived.set()

    async def say(self, word: str) -> None:
        """Tells all ranks to `stop` (write a checkpoint and return) or to `abort` (end at once)."""
        self._words["stop"].set()
        self._words[word].set()

    async def ask_checkpoint(self) -> None:
        """Asks the run for a checkpoint at once, without an end."""
        self._num_asked += 1
        self._asked.set()

    async def wait_for_asking(self, known: int) -> int:
        """Returns how often a checkpoint was asked for, once it is more often than `known`."""
        while self._num_asked <= known:
            self._asked.clear()
            await self._asked.wait()
        return self._num_asked

    async def wait_for(self, word: str) -> None:
        """Returns when the word has been said."""
        await self._words[word].wait()


class Sender:
    """Rank 0's end for records: a thread passes them on in batches, and `send` and `beat` never wait."""

    def __init__(self, deliver: Callable[[list[Record], int | None], Any]) -> None:
        self._deliver = deliver
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._position: int | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)
        self._thread.start()

    def send(self, record: Record) -> None:
        """Queues one record."""
        self._queue.put(record)

    def beat(self, position: int) -> None:
        """Says how far the run is; only the last word of some tenths of a second is passed on."""
        self._position = position

    def close(self) -> None:
        """Passes on what is queued and ends the thread;
        returns within `SEND_TIMEOUT_SECONDS` in any case.
        """
        self._closing.set()
        self._queue.put(None)
        self._thread.join(SEND_TIMEOUT_SECONDS)

    def _run(self) -> None:
        ended, said = False, None
        while not ended:
            batch = []
            while not self._queue.empty():
                batch.append(self._queue.get())
            ended = None in batch
            records = [record for record in batch if record is not None]
            position = self._position
            if records or position != said:
                said = position
                try:
                    self._deliver(records, position)
                except Exception as error:  # the console is not worth a training run
                    logger.debug("%d records were lost: %r", len(records), error)
            self._closing.wait(SEND_EVERY_SECONDS)


class Listener:
    """The driver's end for records: a thread calls `on_record` for each, in order.

    An exception in `on_record` ends the calls, not the run; it is raised by `close`, so that it does not
    pass unseen. `lost` says that there is no channel any more.
    """

    def __init__(
        self,
        next_records: Callable[[], tuple[list[Record], bool]],
        on_record: Callable[[Record], None] | None,
    ) -> None:
        self._next_records = next_records
        self._on_record = on_record
        self._error: BaseException | None = None
        self.lost = False
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Waits for the last records. Raises what `on_record` raised."""
        self._thread.join(timeout_seconds)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        closed = False
        while not closed:
            try:
                records, closed = self._next_records()
            except Exception as error:
                logger.debug("the channel is gone: %r", error)
                self.lost = True
                return
            if self._on_record is None or self._error is not None:
                continue
            try:
                for record in records:
                    self._on_record(record)
            except BaseException as error:
                self._error = error
