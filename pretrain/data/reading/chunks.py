"""The bytes of one row group's columns as a file that pyarrow reads:
few requests, hardly more in memory than 8 MiB.

A row group of which little is needed is fetched with one request (columns that lie close together are read
in one go). The columns of a larger one are read in blocks, the next two on their way while the current one
is used. Blocks are as large as they may be for four (a read may reach over the end of one) to take no more
than the largest row group that is fetched whole, so a row group of 10 MB takes five requests. Where several
streams read different parts of one row group, each has blocks of its own, and they are small. So memory does
not depend on how the rows were grouped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import pyarrow.parquet as pq

from cluster.storage.reading import PositionedFile

# up to this size what is needed of a row group is fetched whole; above it in blocks
WHOLE_GROUP_BYTES = 8 * 2**20
MIN_BLOCK_BYTES, BLOCKS_AHEAD = 2**19, 2
# between two columns: reading so much for nothing takes no longer than another request
GAP_BYTES = 2**18

ReadRange = Callable[[int, int], bytes | memoryview]
Range = tuple[int, int]


def ranges_of_columns(metadata: pq.FileMetaData, row_group: int, leaves: Sequence[str]) -> list[Range]:
    """Where the chunks of leaf columns (`image.bytes`; a name alone means all leaves below it) lie:
    sorted [start, stop).
    """
    group = metadata.row_group(row_group)
    ranges = []
    for index in range(group.num_columns):
        chunk = group.column(index)
        path = chunk.path_in_schema
        if any(path == leaf or path.startswith(f"{leaf}.") for leaf in leaves):
            start = chunk.data_page_offset
            if chunk.has_dictionary_page and chunk.dictionary_page_offset:
                start = min(start, chunk.dictionary_page_offset)
            ranges.append((start, start + chunk.total_compressed_size))
    return sorted(ranges)


def coalesced(ranges: Sequence[Range], *, gap: int = GAP_BYTES) -> list[Range]:
    """Sorted ranges with those joined that lie at most `gap` bytes apart."""
    joined: list[Range] = []
    for start, stop in ranges:
        if joined and start - joined[-1][1] <= gap:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


class Chunks:
    """Ranges of a file that are on their way or in memory, to be read through files of their own.

    Args:
        size_bytes: of the whole file.
        ranges: what will be read, sorted.
        read_range: gives the bytes [start, stop).
        executor: reads ahead.
        is_shared: several streams read different parts at about the same time, each with blocks of its own.

    `is_whole` says that all is kept, so that any number of readers can share it; otherwise each of them
    fetches it again, except for the first, for whom it is on its way.
    """

    def __init__(
        self,
        size_bytes: int,
        ranges: Sequence[Range],
        read_range: ReadRange,
        executor: Executor,
        *,
        is_shared: bool = False,
    ) -> None:
        num_bytes = sum(stop - start for start, stop in ranges)
        self.is_whole = num_bytes <= WHOLE_GROUP_BYTES
        # into so many blocks a column is cut, unless they would be smaller than the smallest
        self._num_blocks = (
            num_bytes if is_shared else -(-num_bytes * (2 + BLOCKS_AHEAD) // max(1, WHOLE_GROUP_BYTES))
        )
        self._size, self._ranges = size_bytes, coalesced(ranges) if self.is_whole else list(ranges)
        self._read_range, self._executor = read_range, executor
        self._begun = [self._blocks()]

    def file(self) -> ChunkFile:
        """A file for one reader, which may be in another thread than other readers."""
        try:
            blocks = self._begun[0] if self.is_whole else self._begun.pop()
        except IndexError:
            blocks = self._blocks()
        return ChunkFile(self._size, blocks)

    def _blocks(self) -> list[_Blocks]:
        return [
            _Blocks(start, stop, self._block_bytes(stop - start), self._read_range, self._executor)
            for start, stop in self._ranges
        ]

    def _block_bytes(self, num_bytes: int) -> int:
        return num_bytes if self.is_whole else max(MIN_BLOCK_BYTES, -(-num_bytes // self._num_blocks))


class ChunkFile(PositionedFile):
    """A seekable file of which only some ranges can be read, see `Chunks`; for `pyarrow.PythonFile`."""

    def __init__(self, size_bytes: int, blocks: list[_Blocks]) -> None:
        super().__init__(size_bytes)
        self._blocks = blocks

    def size(self) -> int:
        return self._size

    def read(self, size: int = -1) -> Any:
        """Bytes from the position on, as bytes or a view of them."""
        for blocks in self._blocks:
            if blocks.start <= self._position < blocks.stop:
                stop = blocks.stop if size < 0 else min(self._position + size, blocks.stop)
                data = blocks.read(self._position, stop)
                self._position += len(data)
                return data
        raise OSError(f"byte {self._position} belongs to no column that was asked for")


class _Blocks:
    """One range, read from its start to its end in blocks; the current one and those ahead are in memory."""

    def __init__(
        self, start: int, stop: int, block_bytes: int, read_range: ReadRange, executor: Executor
    ) -> None:
        self.start, self.stop = start, stop
        self._block_bytes, self._read_range, self._executor = max(1, block_bytes), read_range, executor
        self._at: dict[int, Future[bytes | memoryview]] = {}
        self._begin(0)

    def read(self, start: int, stop: int) -> Any:
        first, last = (start - self.start) // self._block_bytes, (stop - 1 - self.start) // self._block_bytes
        for index in [old for old in self._at if old < first]:
            del self._at[index]
        parts = []
        for index in range(first, last + 1):
            for ahead in range(1 + BLOCKS_AHEAD):
                self._begin(index + ahead)
            offset = self.start + index * self._block_bytes
            view = memoryview(self._at[index].result())
            parts.append(view[max(0, start - offset) : stop - offset])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _begin(self, index: int) -> None:
        start = self.start + index * self._block_bytes
        if index not in self._at and start < self.stop:
            stop = min(start + self._block_bytes, self.stop)
            self._at[index] = self._executor.submit(self._read_range, start, stop)
