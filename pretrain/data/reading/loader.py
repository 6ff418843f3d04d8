"""Batches of one rank: rows from its streams, decoded and cropped by threads ahead of their use.

A bad row (undecodable, truncated, absurdly large, null, or with a `BadImage` among its columns) is replaced
by the next good row of its window, in the shuffled order, and where the window has none (small ones may hold
a single row), by rows drawn from all of its data set (`Order.stand_ins`). The rule depends on the data and
the order alone, so a resumed run, on any number of ranks, skips the same rows and takes the same in their
place. What is drawn for augmentation belongs to the bad row's place, so that the other row is not seen twice
in the same view.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np

from cluster.errors import RunStopped
from pretrain.data.images.decode import BadImage
from pretrain.data.reading.ahead import DEFAULT_BUDGET_BYTES, ReadAhead
from pretrain.data.reading.order import Order
from pretrain.data.reading.reader import StreamReader, max_rows_ready
from pretrain.data.reading.shards import Rows, Shards, Source

# of a data set of which 98 % are bad, the chance that all of so many are is one in 10**8
STAND_INS_TRIED = 1000

# (the row's id, its pass) -> rows to be tried in its place, each as (rows, position)
StandIns = Callable[[int, int], Iterator[tuple[Rows, int]]]


class Filling(Protocol):
    """A batch that several threads make image by image: `pretrain.data.views.random_views.ViewFilling`."""

    arrays: list[np.ndarray]

    @property
    def parameters(self) -> list[np.ndarray] | None: ...

    @property
    def geometry_VB5(self) -> np.ndarray | None: ...

    def fill(self, index: int, data: Any) -> None:
        """Writes what becomes of an image into slot `index` of the arrays. Raises BadImage."""


class Kept(Protocol):
    """Decoded images in memory, see `pretrain.data.reading.kept.KeptImages`."""

    def pixels(self, row_id: int, data: Any) -> Any:
        """What `fill` takes in place of an encoded image. Raises BadImage."""


class HostTransform(Protocol):
    """What the host makes of encoded images."""

    def begin(self, passes: np.ndarray, row_ids: np.ndarray) -> Filling:
        """Makes room for a batch of these rows, int64 [B], in their passes over the data, int64 [B]."""


@dataclass(frozen=True)
class BadRow:
    """A row that could not be used: its id and why."""

    row_id: int
    reason: str


class NoGoodRow(RunStopped):
    """A row that cannot be used, and nothing was found to take its place."""

    def __init__(self, message: str, bad_rows: list[BadRow]) -> None:
        super().__init__(message)
        self.bad_rows = bad_rows


@dataclass
class Batch:
    """One rank's share of a step.

    `row_ids` int64 [B] are the slots in the order, `passes` int64 [B] the passes over their data sets;
    `arrays`, `parameters` and `geometry_VB5` come from the host transform (see
    `pretrain.data.views.random_views.ViewFilling`); `columns` hold the other columns of the rows really used
    (not of those that were bad); `bad_rows` those of the slots that were bad.
    """

    row_ids: np.ndarray
    passes: np.ndarray
    arrays: list[Any]  # on the host; tensors on the device after an `Uploader`
    columns: dict[str, list[Any]]
    parameters: list[Any] | None = None
    geometry_VB5: np.ndarray | None = None
    bad_rows: list[BadRow] = field(default_factory=list)


class Loader:
    """Endless batches of one rank from a position on. Iterate, then `close()`; also a context manager.

    Args:
        order, shards: the data set.
        transform: what is made of each image.
        rank, world_size: whose batches.
        samples_seen: the position of the run, over all ranks.
        decode_threads: threads that decode and crop (decoders release the GIL).
        read_threads: threads that wait for storage.
        prefetch_batches: batches kept ahead; bounds memory together with the window of the order.
        prefetch_bytes: encoded images that are read ahead of the windows in use.
        kept: where decoded images are looked up and left, if anywhere.
    """

    def __init__(
        self,
        order: Order,
        shards: Source,
        transform: HostTransform,
        *,
        rank: int,
        world_size: int,
        samples_seen: int = 0,
        decode_threads: int = 1,
        read_threads: int = 4,
        prefetch_batches: int = 2,
        prefetch_bytes: int = DEFAULT_BUDGET_BYTES,
        kept: Kept | None = None,
    ) -> None:
        self._order, self._shards, self._transform, self._kept = order, shards, transform, kept
        self._epoch, self._step = order.epoch_and_step(samples_seen)
        self._readers = ThreadPoolExecutor(read_threads, thread_name_prefix="read")
        self._decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        ahead = ReadAhead(prefetch_bytes, max_rows=max_rows_ready(order))
        self._streams = [
            StreamReader(
                order,
                shards,
                stream=stream,
                epoch=self._epoch,
                row=self._step * order.rows_per_step_and_stream,
                executor=self._readers,
                ahead=ahead,
            )
            for stream in order.streams_of_rank(rank, world_size)
        ]
        self._queue: queue.Queue[tuple[Batch, list[Future[list[BadRow]]]] | BaseException] = queue.Queue(
            prefetch_batches
        )
        self._closed = threading.Event()
        # a thread of its own keeps both waiting for storage and Python's share
        # of batching off the training thread
        self._producer = threading.Thread(target=self._produce, name="batches", daemon=True)
        self._producer.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch, decoded. Raises what reading raised, and NoGoodRow when nothing can be decoded."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._queue.put(item)  # so that a second call raises as well, instead of waiting forever
            raise item
        batch, jobs = item
        for job in jobs:
            batch.bad_rows.extend(job.result())
        return batch

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops reading and frees the threads."""
        self._closed.set()
        for stream in self._streams:
            stream.close()
        while self._producer.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._producer.join(0.01)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._decoders.shutdown(wait=False, cancel_futures=True)
        with suppress(queue.Full):  # another thread may wait for a batch, as an `Uploader`'s does
            self._queue.put_nowait(CancelledError())

    def _produce(self) -> None:
        try:
            while not self._closed.is_set():
                self._put(self._start_batch())
        except BaseException as error:  # handed to the training thread, which raises it
            self._put(error)

    def _put(self, item: Any) -> None:
        put_until(self._closed, self._queue, item)

    def _start_batch(self) -> tuple[Batch, list[Future[list[BadRow]]]]:
        order = self._order
        slots = [slot for stream in self._streams for slot in stream.take(order.rows_per_step_and_stream)]
        row_ids = np.array([window.row_ids[position] for window, position in slots], dtype=np.int64)
        passes = np.array([window.passes[position] for window, position in slots], dtype=np.int64)
        filling = self._transform.begin(passes, row_ids)
        batch = Batch(
            row_ids=row_ids,
            passes=passes,
            arrays=filling.arrays,
            columns={name: [None] * len(slots) for name in slots[0][0].columns},
            parameters=filling.parameters,
            geometry_VB5=filling.geometry_VB5,
        )
        self._step += 1
        if self._step == order.steps_per_epoch:
            self._epoch, self._step = self._epoch + 1, 0
        # several images a job: the pool's own cost per job is about that of decoding a small image
        share = max(1, min(8, len(slots) // self._decoders._max_workers))
        jobs = [
            self._decoders.submit(
                fill_slots, filling, batch, start, slots[start : start + share], self._stand_ins, self._kept
            )
            for start in range(0, len(slots), share)
        ]
        return batch, jobs

    def _stand_ins(self, row_id: int, pass_number: int) -> Iterator[tuple[Rows, int]]:
        for segment in islice(self._order.stand_ins(row_id, pass_number), STAND_INS_TRIED):
            if self._closed.is_set():
                raise CancelledError
            for rows in self._shards.read(segment, stopped=self._closed.is_set):
                yield from ((rows, position) for position in range(len(rows)))


def fill_slots(
    filling: Filling,
    batch: Batch,
    start: int,
    slots: list[tuple[Rows, int]],
    stand_ins: StandIns = lambda row_id, pass_number: iter(()),
    kept: Kept | None = None,
) -> list[BadRow]:
    """Decodes rows into the slots of a batch from `start` on, others for bad ones; returns the bad ones."""
    bad_rows = []
    for index, (window, position) in enumerate(slots, start):
        row_id, num_tried = window.row_ids[position], 0
        for rows, used in _tried_for(window, position, stand_ins):
            num_tried += 1
            try:
                data = rows.images[used]
                if data is None:
                    raise BadImage("null")
                filling.fill(index, data if kept is None else kept.pixels(rows.row_ids[used], data))
                for values in rows.columns.values():
                    if isinstance(values[used], BadImage):
                        raise BadImage(str(values[used]))
            except BadImage as error:
                if num_tried == 1:  # a bad row in its place is counted at its own
                    bad_rows.append(BadRow(row_id, str(error)))
                continue
            for name, values in rows.columns.items():
                batch.columns[name][index] = values[used]
            break
        else:
            raise NoGoodRow(
                f"none of {num_tried} rows can be decoded (first: {bad_rows[-1].reason}), so nothing takes "
                "the place of a bad row; `python -m pretrain.data check` lists what is wrong with the data",
                bad_rows,
            )
    return bad_rows


def _tried_for(window: Rows, position: int, stand_ins: StandIns) -> Iterator[tuple[Rows, int]]:
    """A row, the others of its window, and then those from elsewhere that are not of its window."""
    for distance in range(len(window)):
        yield window, (position + distance) % len(window)
    neighbours = set(window.row_ids)
    for rows, used in stand_ins(window.row_ids[position], window.passes[position]):
        if rows.row_ids[used] not in neighbours:
            yield rows, used


def bad_rows_in_words(bad_rows: Sequence[BadRow], shards: Shards) -> dict[str, str]:
    """Where each bad row lies -> why it could not be used."""
    return {str(shards.location(bad.row_id)): bad.reason for bad in bad_rows}


def put_until(closed: threading.Event, items: queue.Queue[Any], item: Any) -> None:
    """Puts an item where there is room for it; lets it fall once nobody will take it any more."""
    while not closed.is_set():
        try:
            items.put(item, timeout=0.1)
        except queue.Full:
            continue
        return


def filled(
    transform: HostTransform,
    images: Sequence[Any],
    *,
    row_ids: Sequence[int] | np.ndarray | None = None,
    passes: Sequence[int] | np.ndarray | None = None,
) -> tuple[Filling, dict[int, str]]:
    """A batch made of encoded images or pixels, and why those that could not be decoded were not,
    by their index.

    What is random in a transform is drawn from `row_ids`, by default those of a data set of these images,
    and `passes`, by default the first. What a filling holds at the index of a bad image means nothing.
    """
    ids = np.arange(len(images)) if row_ids is None else np.asarray(row_ids, np.int64)
    filling = transform.begin(
        np.zeros(len(ids), np.int64) if passes is None else np.asarray(passes, np.int64), ids
    )
    bad = {}
    for index, data in enumerate(images):
        try:
            fill_one(filling, index, data)
        except BadImage as error:
            bad[index] = str(error)
    return filling, bad


def fill_one(filling: Filling, index: int, data: Any) -> None:
    """`filling.fill`, which knows what a row without an image is. Raises BadImage."""
    if data is None:
        raise BadImage("null")
    filling.fill(index, data)
