"""Rows of Parquet shards, read in the order of `pretrain.data.order` with bounded memory.

One `StreamReader` per canonical stream keeps one window of encoded rows for use; further windows are read ahead within a
budget of bytes (`pretrain.data.ahead`). Of a row group in a store the needed columns are fetched with few requests
(`pretrain.data.chunks`), several row groups at a time. What is in memory depends on the windows, the budget and the pages of
the files, not on how somebody grouped the rows. `read_in_sequence` is the plain counterpart for evaluation.
"""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import UserError
from pretrain.data import chunks
from pretrain.data.ahead import ReadAhead
from pretrain.data.chunks import Chunks
from pretrain.data.cuts import CutGroups
from pretrain.data.footers import Footer, read_footer
from pretrain.data.manifest import Manifest
from pretrain.data.order import Order, Segment

ROWS_PER_PIECE, PIECE_BYTES = 64, 2**20
FOOTER_CACHE_BYTES = 32 * 2**20
PAGE_BUFFER_BYTES = 2**18
FETCH_THREADS = 32  # nearly all waiting
HORIZON_STEPS = 32
CLOSE_SECONDS = 0.5  # in which a closed reader notices


@dataclass(frozen=True, order=True)
class RowPlace:
    """Where a row lies, for reports: file URL, row group in that file, row in that group."""

    file: str
    row_group: int
    row: int

    def __str__(self) -> str:
        return f"{self.file}: row group {self.row_group}, row {self.row}"

    @classmethod
    def parse(cls, text: str) -> RowPlace:
        """The place that `str` made such a text of."""
        file, _, rest = text.rpartition(": row group ")
        group, row = rest.split(", row ")
        return cls(file, int(group), int(row))


@dataclass
class Rows:
    """Neighbouring or shuffled rows in memory: encoded images (None where null) and the other columns asked for.

    `passes` are the passes over their data sets that rows belong to, see `pretrain.data.mixing`.
    """

    row_ids: list[int]
    passes: list[int]
    images: list[pa.Buffer | None]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.row_ids)


class Source(Protocol):
    """What rows are read from: `Shards`, or what stands in for them."""

    @property
    def mean_row_bytes(self) -> float: ...

    def read(self, segment: Segment, *, stopped: Callable[[], bool] = ...) -> Iterator[Rows]: ...


class Shards:
    """The files of a manifest, opened when needed. Safe to use from several threads.

    Args:
        manifest: of the data set.
        image_column: `struct<bytes, path>` or binary.
        columns: further columns to read along.
    """

    def __init__(self, manifest: Manifest, *, image_column: str, columns: Sequence[str] = ()) -> None:
        self.manifest = manifest
        self.image_column = image_column
        self.columns = tuple(columns)
        self._start_of_group = manifest.start_of_group
        # of the process; Arrow's own pool keeps what was freed, measured at 60 MiB more for the same reading
        pa.set_memory_pool(pa.system_memory_pool())
        self._footers: OrderedDict[int, Footer] = OrderedDict()
        self._footer_bytes = 0
        self._lock = Lock()
        self._fetchers: ThreadPoolExecutor | None = None
        self._on_cuts = CutGroups()

    @property
    def mean_row_bytes(self) -> float:
        """Encoded bytes of an image on average."""
        return float(self.manifest.bytes_of_group.sum() / max(1, self.manifest.num_rows))

    def place(self, row_id: int) -> RowPlace:
        """Where the row with this id lies."""
        groups, rows = self.manifest.locate([row_id])
        group = int(groups[0])
        file = self.manifest.files[int(self.manifest.file_of_group[group])]
        return RowPlace(file.url, int(self.manifest.group_in_file[group]), int(rows[0]))

    def read(self, segment: Segment, *, stopped: Callable[[], bool] = lambda: False) -> Iterator[Rows]:
        """The rows of a segment in pieces of at most 64; what a store has to send is on its way when this returns.

        Where the store fails, it is asked no more once `stopped` says so.

        Raises UserError (with the first piece) when the file changed or went away.
        """
        index = int(self.manifest.file_of_group[segment.group])
        if storage.is_local(self.manifest.files[index].url):
            return self._pieces(segment, None)
        rows_of_group = int(self.manifest.rows_of_group[segment.group])
        if segment.stop - segment.start == rows_of_group:
            return self._pieces(segment, self._fetch(segment.group, stopped))
        fetched = self._on_cuts.fetched(
            segment.group,
            num_rows=segment.stop - segment.start,
            rows_of_group=rows_of_group,
            num_bytes=int(self.manifest.bytes_of_group[segment.group]),
            stopped=stopped,
            fetch=lambda stopped: self._fetch(segment.group, stopped),
        )
        return self._pieces(segment, fetched)

    def _fetch(self, group: int, stopped: Callable[[], bool]) -> Future[Chunks]:
        return self._fetchers_().submit(self._fetched, group, stopped)

    def _fetchers_(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._fetchers is None:
                self._fetchers = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
            return self._fetchers

    def _fetched(self, group: int, stopped: Callable[[], bool]) -> Chunks:
        index = int(self.manifest.file_of_group[group])
        file, footer = self.manifest.files[index], self._footer(index, stopped)
        ranges = chunks.ranges_of_columns(
            footer.metadata, int(self.manifest.group_in_file[group]), self._leaf_columns(footer.schema)
        )

        def read_range(start: int, stop: int) -> bytes:
            return storage.read_range(file, start, stop, stopped=stopped)

        return Chunks(file.size_bytes, ranges, read_range, self._fetchers_())

    def _pieces(self, segment: Segment, fetched: Future[Chunks] | None) -> Iterator[Rows]:
        manifest, group = self.manifest, segment.group
        file_index, group_in_file = int(manifest.file_of_group[group]), int(manifest.group_in_file[group])
        url = manifest.files[file_index].url
        position = 0
        try:
            with self._opened(file_index, fetched) as source:
                footer = self._footer(file_index)
                whole = int(manifest.bytes_of_group[group]) <= chunks.WHOLE_GROUP_BYTES
                mean = manifest.bytes_of_group[group] / manifest.rows_of_group[group]
                piece_bytes = PIECE_BYTES if whole else PIECE_BYTES // 4
                batches = pq.ParquetFile(
                    source,
                    metadata=footer.metadata,
                    pre_buffer=False,
                    buffer_size=0 if whole else PAGE_BUFFER_BYTES,
                ).iter_batches(
                    batch_size=int(min(max(1, piece_bytes // max(1, mean)), ROWS_PER_PIECE)),
                    row_groups=[group_in_file],
                    columns=self._leaf_columns(footer.schema),
                    use_threads=False,
                )
                # a small group is decoded at once, so that its rows are not kept a second time as they were sent
                for batch in list(batches) if whole else batches:
                    first, last = max(segment.start - position, 0), min(segment.stop - position, batch.num_rows)
                    if first < last:
                        row_id = int(self._start_of_group[group]) + position + first
                        yield self._rows(batch.slice(first, last - first), row_id, segment.pass_number)
                    position += batch.num_rows
                    if position >= segment.stop:
                        return
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{url}: row group {group_in_file} cannot be read: {reason}") from error
        if position < segment.stop:
            raise UserError(f"{url}: row group {group_in_file} is shorter than when the run started")

    def _opened(self, file_index: int, fetched: Future[Chunks] | None) -> pa.NativeFile:
        if fetched is not None:
            return pa.PythonFile(fetched.result().file(), mode="r")
        file = self.manifest.files[file_index]
        with storage.explained("read", file.url):
            path = storage.local_path(file.url)
            now = os.stat(path)
            if now.st_size != file.size_bytes or str(now.st_mtime) != file.version:
                raise UserError(storage.changed(file))
            return pa.OSFile(str(path))

    def _leaf_columns(self, schema: pa.Schema) -> list[str]:
        # only the bytes of an image struct are read; its path may be long and is not needed
        is_struct = pa.types.is_struct(schema.field(self.image_column).type)
        return [f"{self.image_column}.bytes" if is_struct else self.image_column, *self.columns]

    def _rows(self, batch: pa.RecordBatch, first_row_id: int, pass_number: int) -> Rows:
        images = batch.column(self.image_column)
        if pa.types.is_struct(images.type):
            # flatten() applies the struct's own validity to its child, field() does not
            images = images.flatten()[images.type.get_field_index("bytes")]
        return Rows(
            row_ids=list(range(first_row_id, first_row_id + batch.num_rows)),
            passes=[pass_number] * batch.num_rows,
            images=[image.as_buffer() for image in images],
            columns={name: batch.column(name).to_pylist() for name in self.columns},
        )

    def _footer(self, file_index: int, stopped: Callable[[], bool] = lambda: False) -> Footer:
        with self._lock:
            footer = self._footers.get(file_index)
            if footer is not None:
                self._footers.move_to_end(file_index)
                return footer
        footer = read_footer(self.manifest.files[file_index], stopped=stopped)
        with self._lock:
            if file_index not in self._footers:
                self._footer_bytes += footer.metadata.serialized_size
            self._footers[file_index] = footer
            while self._footer_bytes > FOOTER_CACHE_BYTES and len(self._footers) > 1:
                _, oldest = self._footers.popitem(last=False)
                self._footer_bytes -= oldest.metadata.serialized_size
        return footer


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
        self._asked: deque[Future[_Window]] = deque()
        self._lock, self._is_reading, self._closed = Lock(), False, False
        self._window, self._position = Rows([], [], [], {}), 0
        self._ahead = ahead or ReadAhead(most_rows=rows_ready_at_most(order))
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
                window = self._arrived(self._begun[0][1])
                self._begun.popleft()
                self._window, self._position = window.rows, window.start
                self._ahead.fill()
            stop = min(self._position + num - len(taken), len(self._window))
            taken.extend((self._window, position) for position in range(self._position, stop))
            self._position = stop
        return taken

    def close(self) -> None:
        """Lets a `take` that waits in another thread raise CancelledError, so that nobody waits for a store in vain."""
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
        return len(self._window) - self._position + sum(size for size, _ in self._begun)

    def bytes_ahead(self) -> int:
        """Bytes of the windows that wait for use; of those on their way, what they have on average."""
        return sum(
            future.result().num_bytes if future.done() and future.exception() is None else self._about(size)
            for size, future in self._begun
        )

    def bytes_of_next(self) -> int:
        """Bytes, about, of the next window that is not on its way yet."""
        return self._about(self._next_size)

    def begin_next(self) -> None:
        """Sends for the next window."""
        future: Future[_Window] = Future()
        self._begun.append((self._next_size, future))
        self._next_size = next(self._sizes)
        with self._lock:
            self._asked.append(future)
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
                future = self._asked.popleft()
            try:
                if self._closed:
                    raise CancelledError
                future.set_result(next(self._windows))
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
                num_bytes = sum(image.size for image in rows.images if image is not None)
                yield _Window(rows, start - int(bounds[window]) if window == first_window else 0, num_bytes)


@dataclass(frozen=True)
class _Window:
    """Rows in shuffled order, the position among them where reading starts (0 but for the first), and their bytes."""

    rows: Rows
    start: int
    num_bytes: int


class _SegmentRows:
    """The rows of segments one after another; all segments of which rows are asked for are fetched at once."""

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


def rows_ready_at_most(order: Order) -> int:
    """Rows that a stream keeps ready: those of one window, and of some steps where windows are small."""
    return max(order.window_rows_per_stream, HORIZON_STEPS * order.rows_per_step_and_stream)


def read_in_sequence(shards: Shards, *, rank: int = 0, world_size: int = 1) -> Iterator[Rows]:
    """Every row of the data set once, in file order, in pieces of at most 64; ranks read contiguous shares of the groups."""
    num_groups = len(shards.manifest.rows_of_group)
    for group in range(rank * num_groups // world_size, (rank + 1) * num_groups // world_size):
        yield from shards.read(Segment(group, 0, int(shards.manifest.rows_of_group[group])))
