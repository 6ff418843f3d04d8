"""Rows of Parquet shards, read in the order of `pretrain.data.order` with bounded memory.

One `StreamReader` per canonical stream keeps one window of encoded rows for use and one being read ahead. A row group that
is small enough is fetched in one request; a huge one is read piecewise, so memory depends on the window and not on how
somebody grouped the rows. `read_in_sequence` is the plain counterpart for evaluation: every row once, in file order.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import UserError
from pretrain.data.manifest import Manifest
from pretrain.data.order import Order, Segment

# up to this size a row group is fetched whole with one coalesced request; above it, page by page
WHOLE_GROUP_BYTES = 64 * 2**20
ROWS_PER_PIECE = 64
OPEN_FILES_REMEMBERED = 256


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
        self._footers: OrderedDict[int, pq.FileMetaData] = OrderedDict()
        self._lock = Lock()

    def place(self, row_id: int) -> RowPlace:
        """Where the row with this id lies."""
        groups, rows = self.manifest.locate([row_id])
        group = int(groups[0])
        file = self.manifest.files[int(self.manifest.file_of_group[group])]
        return RowPlace(file.url, int(self.manifest.group_in_file[group]), int(rows[0]))

    def read(self, segment: Segment) -> Iterator[Rows]:
        """The rows of a segment in pieces of at most 64. Raises UserError when the file changed or went away."""
        manifest, group = self.manifest, segment.group
        file_index = int(manifest.file_of_group[group])
        url = manifest.files[file_index].url
        whole = int(manifest.bytes_of_group[group]) <= WHOLE_GROUP_BYTES
        try:
            with storage.open_input(url) as source:
                parquet = pq.ParquetFile(
                    source,
                    metadata=self._footer(file_index),
                    pre_buffer=whole,
                    buffer_size=0 if whole else 2**20,
                )
                self._remember_footer(file_index, parquet.metadata)
                position = 0
                for batch in parquet.iter_batches(
                    batch_size=ROWS_PER_PIECE,
                    row_groups=[int(manifest.group_in_file[group])],
                    columns=self._leaf_columns(parquet.schema_arrow),
                    use_threads=False,
                ):
                    first, last = max(segment.start - position, 0), min(segment.stop - position, batch.num_rows)
                    if first < last:
                        row_id = int(self._start_of_group[group]) + position + first
                        yield self._rows(batch.slice(first, last - first), row_id, segment.pass_number)
                    position += batch.num_rows
                    if position >= segment.stop:
                        return
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{url}: row group {int(manifest.group_in_file[group])} cannot be read: {reason}"
            ) from error
        if position < segment.stop:
            raise UserError(
                f"{url}: row group {int(manifest.group_in_file[group])} is shorter than when the run started"
            )

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

    def _footer(self, file_index: int) -> pq.FileMetaData | None:
        with self._lock:
            return self._footers.get(file_index)

    def _remember_footer(self, file_index: int, footer: pq.FileMetaData) -> None:
        with self._lock:
            self._footers[file_index] = footer
            self._footers.move_to_end(file_index)
            if len(self._footers) > OPEN_FILES_REMEMBERED:
                self._footers.popitem(last=False)


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
        shards: where the rows are read.
        stream: number of the stream.
        epoch, row: position: the next row to give is row `row` of the stream in epoch `epoch`.
        executor: reads the next window while the current one is used; one task at a time for each stream.
    """

    def __init__(self, order: Order, shards: Shards, *, stream: int, epoch: int, row: int, executor: Executor) -> None:
        self._order, self._shards, self._stream, self._executor = order, shards, stream, executor
        self._windows = self._read_windows(epoch, row)
        self._next: Future[tuple[Rows, int]] = executor.submit(next, self._windows)
        self._window, self._position = Rows([], [], [], {}), 0

    def take(self, num: int) -> list[tuple[Rows, int]]:
        """The next rows, each as (its window, its position in the window's shuffled order)."""
        taken: list[tuple[Rows, int]] = []
        while len(taken) < num:
            if self._position == len(self._window):
                self._window, self._position = self._next.result()
                self._next = self._executor.submit(next, self._windows)
            stop = min(self._position + num - len(taken), len(self._window))
            taken.extend((self._window, position) for position in range(self._position, stop))
            self._position = stop
        return taken

    def _read_windows(self, first_epoch: int, first_row: int) -> Iterator[tuple[Rows, int]]:
        """Windows in shuffled order, each with the position in it where reading starts (0 but for the first)."""
        order, stream = self._order, self._stream
        bounds = order.window_bounds(stream)
        for epoch in itertools.count(first_epoch):
            start = first_row if epoch == first_epoch else 0
            first_window = int(bounds.searchsorted(start, side="right")) - 1
            pieces = itertools.chain.from_iterable(
                map(self._shards.read, order.segments(epoch, stream, int(bounds[first_window])))
            )
            rest: Rows | None = None
            for window in range(first_window, len(bounds) - 1):
                size = int(bounds[window + 1] - bounds[window])
                parts = [rest] if rest is not None else []
                while sum(map(len, parts)) < size:
                    parts.append(next(pieces))
                whole = _joined(parts)
                rest = _taken(whole, range(size, len(whole))) if len(whole) > size else None
                rows = _taken(whole, order.window_order(epoch, stream, window, size).tolist())
                yield rows, start - int(bounds[window]) if window == first_window else 0


def read_in_sequence(shards: Shards, *, rank: int = 0, world_size: int = 1) -> Iterator[Rows]:
    """Every row of the data set once, in file order, in pieces of at most 64; ranks read contiguous shares of the groups."""
    num_groups = len(shards.manifest.rows_of_group)
    for group in range(rank * num_groups // world_size, (rank + 1) * num_groups // world_size):
        yield from shards.read(Segment(group, 0, int(shards.manifest.rows_of_group[group])))
