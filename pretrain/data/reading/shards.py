"""Rows of Parquet shards as they lie, on disk or in a store, in pieces of bounded size.

Of a row group in a store the needed columns are fetched with few requests (`pretrain.data.reading.chunks`),
several row groups at a time; a group that several streams share is fetched once
(`pretrain.data.reading.cuts`). `read_in_sequence` is for evaluation;
training reads by `pretrain.data.reading.reader`.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import UserError
from cluster.secrets import masked_url
from cluster.storage import FileInfo
from pretrain.data.reading import chunks
from pretrain.data.reading.chunks import Chunks
from pretrain.data.reading.cuts import CutGroups, OpenGroup
from pretrain.data.reading.footers import Footer, read_footer
from pretrain.data.reading.image_paths import check_paths, encoded_images, image_root
from pretrain.data.reading.manifest import Manifest
from pretrain.data.reading.naming import named, names_in
from pretrain.data.reading.order import Segment
from pretrain.data.reading.plain_values import NotPlain, PlainValues

ROWS_PER_PIECE, PIECE_BYTES = 64, 2**20
FOOTER_CACHE_BYTES = 32 * 2**20
PAGE_BUFFER_BYTES = 2**18
FETCH_THREADS = 32  # nearly all waiting
NUM_PROBED = 16  # images that lie outside of Parquet, which tell how large they are


@dataclass(frozen=True, order=True)
class RowLocation:
    """Where a row lies, for reports: file URL, row group in that file, row in that group."""

    file: str
    row_group: int
    row: int

    def __str__(self) -> str:
        return f"{self.file}: row group {self.row_group}, row {self.row}"

    @classmethod
    def parse(cls, text: str) -> RowLocation:
        """The location that `str` made such a text of."""
        file, _, rest = text.rpartition(": row group ")
        group, row = rest.split(", row ")
        return cls(file, int(group), int(row))


@dataclass
class Rows:
    """Neighbouring or shuffled rows in memory: encoded images (None where
    null) and the other columns asked for.

    `passes` are the passes over their data sets that rows belong to, see `pretrain.data.reading.mixing`.
    """

    row_ids: list[int]
    passes: list[int]
    images: list[bytes | None]
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
        columns: further columns to read along, of the file or of the names of its folders.
        as_stored: leaves numbers that stand for class names as they are, see `pretrain.data.reading.naming`.
    """

    def __init__(
        self, manifest: Manifest, *, image_column: str, columns: Sequence[str] = (), as_stored: bool = False
    ) -> None:
        self.manifest = manifest
        self.image_column = image_column
        self.columns = tuple(columns)
        self.as_stored = as_stored
        self._start_of_group = manifest.start_of_group
        self._begin()

    def _begin(self) -> None:
        """Nothing is open yet, and no row was read."""
        self._footers: OrderedDict[int, Footer] = OrderedDict()
        self._footer_bytes = 0
        self._lock = Lock()
        self._fetchers: ThreadPoolExecutor | None = None
        self._on_cuts = CutGroups()
        self._shown: dict[int, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process: what is open here stays here."""
        opened = ("_footers", "_footer_bytes", "_lock", "_fetchers", "_on_cuts", "_shown")
        return {name: value for name, value in self.__dict__.items() if name not in opened}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @cached_property
    def mean_row_bytes(self) -> float:
        """Encoded bytes of an image on average; where files hold paths alone, of some of these images."""
        if image_root() is not None and (paths := self._first_paths()):
            return check_paths(paths, self.manifest.files[int(self.manifest.file_of_group[0])].url)
        return float(
            self.manifest.bytes_of_group.sum() * self.manifest.fraction / max(1, self.manifest.num_rows)
        )

    def _first_paths(self) -> list[str | None]:
        """Paths of the first rows, where these have no bytes."""
        file_index = int(self.manifest.file_of_group[0])
        kind = self._footer(file_index).schema.field(self.image_column).type
        if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
            return []
        with storage.open_input(self.manifest.files[file_index].url) as source:
            batches = pq.ParquetFile(source).iter_batches(
                NUM_PROBED, row_groups=[int(self.manifest.group_in_file[0])], columns=[self.image_column]
            )
            rows = next(batches).column(0).to_pylist()
        return (
            []
            if any(row and row["bytes"] is not None for row in rows)
            else [row and row["path"] for row in rows]
        )

    def location(self, row_id: int) -> RowLocation:
        """Where the row with this id lies."""
        groups, rows = self.manifest.locate([row_id])
        group = int(groups[0])
        index = int(self.manifest.file_of_group[group])
        if index not in self._shown:  # locations are written down
            self._shown[index] = masked_url(self.manifest.files[index].url)
        return RowLocation(self._shown[index], int(self.manifest.group_in_file[group]), int(rows[0]))

    def read(self, segment: Segment, *, stopped: Callable[[], bool] = lambda: False) -> Iterator[Rows]:
        """The rows of a segment in pieces of at most 64;
        what a store has to send is on its way when this returns.

        Where the store fails, it is asked no more once `stopped` says so.

        Raises UserError (with the first piece) when the file changed or went away.
        """
        manifest, group = self.manifest, segment.group
        is_local = storage.is_local(manifest.files[int(manifest.file_of_group[group])].url)
        rows_of_group, num_bytes = int(manifest.rows_of_group[group]), int(manifest.bytes_of_group[group])

        def open_group(stopped: Callable[[], bool]) -> OpenGroup:
            if is_local:
                return OpenGroup()
            return OpenGroup(self._fetchers_().submit(self._fetched, group, stopped, segment.is_shared))

        is_whole = segment.stop - segment.start == rows_of_group
        if is_whole or not segment.is_shared or (is_local and num_bytes > chunks.WHOLE_GROUP_BYTES):
            return self._pieces(segment, open_group(stopped))
        shared = self._on_cuts.opened(
            group,
            num_rows=segment.stop - segment.start,
            rows_of_group=rows_of_group,
            num_bytes=num_bytes,
            stopped=stopped,
            fetch=open_group,
        )
        return self._pieces(segment, shared)

    def _fetchers_(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._fetchers is None:
                self._fetchers = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
            return self._fetchers

    def _fetched(self, group: int, stopped: Callable[[], bool], is_shared: bool) -> Chunks:
        index = int(self.manifest.file_of_group[group])
        file, footer = self.manifest.files[index], self._footer(index, stopped)
        ranges = chunks.ranges_of_columns(
            footer.metadata, int(self.manifest.group_in_file[group]), self._leaf_columns(footer.schema)
        )

        def read_range(start: int, stop: int) -> bytes | memoryview:
            return storage.read_range(file, start, stop, stopped=stopped)

        return Chunks(file.size_bytes, ranges, read_range, self._fetchers_(), is_shared=is_shared)

    def _pieces(self, segment: Segment, opened: OpenGroup) -> Iterator[Rows]:
        manifest, group = self.manifest, segment.group
        file_index, group_in_file = int(manifest.file_of_group[group]), int(manifest.group_in_file[group])
        where = f"{manifest.files[file_index].url}: row group {group_in_file}"
        num_read = 0
        try:
            values = self._plain_values(file_index, group_in_file)
            pieces = self._arrow_pieces(segment, opened) if values is None else self._plain(segment, values)
            for rows in pieces:
                yield rows
                num_read += len(rows)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{where} cannot be read: {str(error).splitlines()[0]}") from error
        if num_read < segment.stop - segment.start:
            raise UserError(f"{where} is shorter than when the run started")

    def _plain_values(self, file_index: int, group_in_file: int) -> PlainValues | None:
        """The images of a row group on disk that lie in it as they are, where nothing else is read along."""
        file = self.manifest.files[file_index]
        if self.columns or image_root() is not None or not storage.is_local(file.url):
            return None
        footer = self._footer(file_index)
        (column,) = self._leaf_columns(footer.schema)
        try:
            return PlainValues(self._local_path(file), footer.metadata, group_in_file, column)
        except NotPlain:
            return None

    def _plain(self, segment: Segment, values: PlainValues) -> Iterator[Rows]:
        chosen = self.manifest.choice_in_group(segment.group)
        if chosen is None:
            chosen = np.arange(segment.start, segment.stop)
        else:
            chosen = chosen[segment.start : segment.stop]
        first_id = int(self._start_of_group[segment.group]) + segment.start
        with values:
            positions = values.positions(chosen)
            step = int(min(max(1, PIECE_BYTES // values.mean_bytes), ROWS_PER_PIECE))
            for start in range(0, len(positions), step):
                images: list[bytes | None] = list(values.read(positions[start : start + step]))
                row_ids = list(range(first_id + start, first_id + start + len(images)))
                yield Rows(row_ids, [segment.pass_number] * len(images), images, {})

    def _arrow_pieces(self, segment: Segment, opened: OpenGroup) -> Iterator[Rows]:
        group = segment.group
        choice, footer = self.manifest.choice_in_group(group), None
        first_id, position, num_seen = int(self._start_of_group[group]), 0, 0
        for batch in self._batches(group, opened):
            if choice is not None:  # those of its rows that lie in this batch
                begin, num_seen = num_seen, num_seen + batch.num_rows
                batch = batch.take(choice[slice(*np.searchsorted(choice, (begin, num_seen)))] - begin)
            first = max(segment.start - position, 0)
            last = min(segment.stop - position, batch.num_rows)
            if first < last:
                footer = footer or self._footer(int(self.manifest.file_of_group[group]))
                part = batch.slice(first, last - first)
                yield self._rows(part, first_id + position + first, segment.pass_number, footer)
            position += batch.num_rows
            if position >= segment.stop:
                return

    def _batches(self, group: int, opened: OpenGroup) -> Iterable[pa.RecordBatch]:
        """The rows of a group: a small one is decoded for all who share it, to be in memory once."""
        num_bytes = int(self.manifest.bytes_of_group[group])
        if num_bytes <= chunks.WHOLE_GROUP_BYTES:
            return opened.decoded(
                lambda: list(self._decoded(group, opened, piece_bytes=PIECE_BYTES, buffer_bytes=0))
            )
        return self._decoded(group, opened, piece_bytes=PIECE_BYTES // 4, buffer_bytes=PAGE_BUFFER_BYTES)

    def _decoded(
        self, group: int, opened: OpenGroup, *, piece_bytes: int, buffer_bytes: int
    ) -> Iterator[pa.RecordBatch]:
        manifest = self.manifest
        file_index, group_in_file = int(manifest.file_of_group[group]), int(manifest.group_in_file[group])
        with self._file(file_index, opened) as source:
            footer = self._footer(file_index)
            mean = manifest.bytes_of_group[group] / max(1, footer.metadata.row_group(group_in_file).num_rows)
            yield from pq.ParquetFile(
                source, metadata=footer.metadata, pre_buffer=False, buffer_size=buffer_bytes
            ).iter_batches(
                batch_size=int(min(max(1, piece_bytes // max(1, mean)), ROWS_PER_PIECE)),
                row_groups=[group_in_file],
                columns=self._leaf_columns(footer.schema),
                use_threads=False,
            )

    def _file(self, file_index: int, opened: OpenGroup) -> pa.NativeFile:
        if opened.chunks is not None:
            return pa.PythonFile(opened.chunks.result().file(), mode="r")
        return pa.OSFile(str(self._local_path(self.manifest.files[file_index])))

    def _local_path(self, file: FileInfo) -> Path:
        """Where a file on disk lies. Raises UserError when it is another than when the run started."""
        with storage.explained("read", file.url):
            path = storage.local_path(file.url)
            now = os.stat(path)
            if now.st_size != file.size_bytes or str(now.st_mtime) != file.version:
                raise UserError(storage.changed(file))
            return path

    def _leaf_columns(self, schema: pa.Schema) -> list[str]:
        # only the bytes of an image struct are read; its path may be long and is
        # needed only where images lie outside
        kind = schema.field(self.image_column).type
        images = [f"{self.image_column}.bytes" if pa.types.is_struct(kind) else self.image_column]
        if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0 and image_root() is not None:
            images.append(f"{self.image_column}.path")
        return [*images, *self.columns]  # Parquet passes over those that are in the names of folders

    def _rows(self, batch: pa.RecordBatch, first_row_id: int, pass_number: int, footer: Footer) -> Rows:
        return Rows(
            row_ids=list(range(first_row_id, first_row_id + batch.num_rows)),
            passes=[pass_number] * batch.num_rows,
            images=encoded_images(batch.column(self.image_column), lambda *of: self._fetchers_().map(*of)),
            columns={name: self._values(batch, name, footer) for name in self.columns},
        )

    def _values(self, batch: pa.RecordBatch, name: str, footer: Footer) -> list[Any]:
        """The values of a column, or of a field of a struct (`image.path`)."""
        if name in footer.folder_columns:
            return [footer.folder_columns[name]] * batch.num_rows
        if name not in batch.schema.names:
            outer, _, inner = name.partition(".")
            column = batch.column(outer)
            return list(column.flatten()[column.type.get_field_index(inner)].to_pylist())
        values = list(batch.column(name).to_pylist())
        names = None if self.as_stored else names_in(footer.schema, name)
        return values if names is None else [named(value, names) for value in values]

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


def read_in_sequence(shards: Shards, *, rank: int = 0, world_size: int = 1) -> Iterator[Rows]:
    """Every row once, in file order, in pieces of at most 64; ranks read contiguous shares of the groups."""
    num_groups = len(shards.manifest.rows_of_group)
    for group in range(rank * num_groups // world_size, (rank + 1) * num_groups // world_size):
        yield from shards.read(Segment(group, 0, int(shards.manifest.rows_of_group[group])))
