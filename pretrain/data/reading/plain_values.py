"""Images of a shard on disk, read from where they lie, without Arrow's copies.

An import writes images as they are: uncompressed, in plain encoding, none missing. Such a column is pages of
a header, levels that tell what is null, and the values, each behind its length
(https://parquet.apache.org/docs/file-format/data-pages/ and `Encodings.md` in apache/parquet-format). Arrow
copies a page out of the file, then the values out of the page, each time into fresh memory. What is stored
in any other way is Arrow's to read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

# values of so many bytes on average, and those that lie apart, are read one by one; others many at once
LARGE_VALUE_BYTES, MAX_READ_BYTES = 2**16, 2**22
# lengths of values so small are found in the page, those of others one by one in the file
SMALL_VALUE_BYTES = 2**12
# headers of pages have some dozens of bytes, and more where they tell the least and the greatest value
HEADER_BYTES, MAX_HEADER_BYTES = 2**8, 2**16
LENGTH_BYTES = 4
FADVISE = getattr(os, "posix_fadvise", None)  # of Linux

# types of fields in thrift's compact protocol
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, 12
# fields of PageHeader, DataPageHeader and DataPageHeaderV2 in parquet.thrift
_KIND, _PAGE_BYTES, _PAGE, _PAGE_V2 = 1, 3, 5, 8
_NUM_VALUES, _ENCODING = 1, 2
_NUM_NULLS_V2, _ENCODING_V2, _LEVELS_BYTES_V2 = 2, 4, 5
_DATA_PAGE, _DATA_PAGE_V2, _PLAIN = 0, 3, 0


class NotPlain(Exception):
    """A column that is stored in another way, or is damaged; Arrow reads it, or has the words for it."""


@dataclass(frozen=True)
class _Page:
    """Where the values of a page lie in the file, and how many they are."""

    start: int
    stop: int
    num_values: int


class PlainValues:
    """The values of a column in one row group of a file; a context manager, which closes the file.

    Args:
        path: of the file.
        metadata: of the file.
        row_group: its number.
        column: its path, such as `image.bytes`.

    Raises:
        NotPlain: when the column is stored in another way, or some value is null.
    """

    def __init__(self, path: Path, metadata: pq.FileMetaData, row_group: int, column: str) -> None:
        group = metadata.row_group(row_group)
        columns = {group.column(index).path_in_schema: index for index in range(group.num_columns)}
        if column not in columns:
            raise NotPlain
        chunk, leaf = group.column(columns[column]), metadata.schema.column(columns[column])
        if (
            (chunk.physical_type, chunk.compression) != ("BYTE_ARRAY", "UNCOMPRESSED")
            or chunk.has_dictionary_page
            or leaf.max_repetition_level
        ):
            raise NotPlain
        self._level = leaf.max_definition_level
        start, num_bytes = chunk.data_page_offset, chunk.total_compressed_size
        self.mean_bytes = num_bytes / max(1, group.num_rows)
        self._file = os.open(path, os.O_RDONLY)
        try:
            self._pages = list(self._found(start, start + num_bytes))
            if sum(page.num_values for page in self._pages) != group.num_rows:
                raise NotPlain
        except (IndexError, KeyError, TypeError, RecursionError):  # damaged
            self.close()
            raise NotPlain from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PlainValues:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _found(self, position: int, stop: int) -> Iterator[_Page]:
        while position < stop:
            fields, size = self._header(position)
            if fields[_PAGE_BYTES] < 0:
                raise NotPlain
            start, position = position + size, position + size + fields[_PAGE_BYTES]
            if fields[_KIND] == _DATA_PAGE_V2:
                page = fields[_PAGE_V2]
                num_values, levels = page[_NUM_VALUES], page[_LEVELS_BYTES_V2]
                is_plain = page[_ENCODING_V2] == _PLAIN and not page[_NUM_NULLS_V2]
            else:
                page, levels = fields[_PAGE], 0
                num_values = page[_NUM_VALUES]
                is_plain = fields[_KIND] == _DATA_PAGE and page[_ENCODING] == _PLAIN
                if is_plain and self._level:
                    size = int.from_bytes(os.pread(self._file, LENGTH_BYTES, start), "little")
                    encoded = os.pread(self._file, min(size, position - start), start + LENGTH_BYTES)
                    levels, is_plain = LENGTH_BYTES + size, _are_all(self._level, encoded, num_values)
            if not is_plain:
                raise NotPlain
            yield _Page(start + levels, position, num_values)

    def _header(self, position: int) -> tuple[dict[int, Any], int]:
        try:
            return _struct(os.pread(self._file, HEADER_BYTES, position), 0)
        except IndexError:
            return _struct(os.pread(self._file, MAX_HEADER_BYTES, position), 0)

    def positions(self, rows_N: np.ndarray) -> np.ndarray:
        """Where the values of these rows, which ascend, lie in the file:
        int64 [N, 2], of the first byte and of that behind the last; of fewer rows where there are no more.

        Raises OSError when a length does not fit into its page.
        """
        found, first = [np.empty((0, 2), np.int64)], 0
        for page in self._pages:
            here = rows_N[slice(*np.searchsorted(rows_N, (first, first + page.num_values)))] - first
            if len(here):
                found.append(self._positions_in(page, int(here[-1]) + 1)[here])
            first += page.num_values
        return np.concatenate(found)

    def _positions_in(self, page: _Page, num: int) -> np.ndarray:
        """Of the first values of a page."""
        positions = np.empty((num, 2), np.int64)
        data, at = b"", page.start
        if FADVISE is not None:
            # else a disk that has not read it yet is asked for each length by itself
            FADVISE(self._file, page.start, page.stop - page.start, os.POSIX_FADV_WILLNEED)
        if self.mean_bytes < SMALL_VALUE_BYTES:
            data = os.pread(self._file, page.stop - page.start, page.start)
        for index in range(num):
            offset = at - page.start
            length = data[offset : offset + LENGTH_BYTES] or os.pread(self._file, LENGTH_BYTES, at)
            begin, at = at + LENGTH_BYTES, at + LENGTH_BYTES + int.from_bytes(length, "little")
            if at > page.stop:
                raise OSError("an image reaches over the end of its page")
            positions[index] = begin, at
        return positions

    def read(self, positions_N2: np.ndarray) -> list[bytes]:
        """The values at these positions, which ascend. Raises OSError when the file ends before one does."""
        spans = positions_N2.tolist()
        offset, num_bytes = spans[0][0], spans[-1][1] - spans[0][0]
        if self.mean_bytes >= LARGE_VALUE_BYTES or num_bytes > MAX_READ_BYTES:
            values = [os.pread(self._file, end - begin, begin) for begin, end in spans]
        else:
            data = os.pread(self._file, num_bytes, offset)
            values = [data[begin - offset : end - offset] for begin, end in spans]
        if any(len(value) != end - begin for value, (begin, end) in zip(values, spans, strict=True)):
            raise OSError("the file ends within an image")
        return values


def _are_all(level: int, encoded: bytes, num: int) -> bool:
    """Whether levels, in runs and packed bits (`Encodings.md`, RLE), are all this one, the highest."""
    width, at = level.bit_length(), 0
    while num > 0:
        run, at = _number(encoded, at)
        if run & 1:
            num_here, stop = min(8 * (run >> 1), num), at + (run >> 1) * width
            bits, mask = int.from_bytes(encoded[at:stop], "little"), (1 << width) - 1
            same = all(bits >> (width * index) & mask == level for index in range(num_here))
        else:
            num_here, stop = run >> 1, at + (width + 7) // 8
            same = int.from_bytes(encoded[at:stop], "little") == level
        if not same or not num_here:
            return False
        num, at = num - num_here, stop
    return True


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    number = shift = 0
    while True:
        byte = data[at]
        number, shift, at = number | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return number, at


def _signed(data: bytes, at: int) -> tuple[int, int]:
    number, at = _number(data, at)
    return (number >> 1) ^ -(number & 1), at


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Fields of a struct by their numbers, and where it ends. Raises IndexError where `data` ends before."""
    fields: dict[int, Any] = {}
    field = 0
    while True:
        step, kind, at = data[at] >> 4, data[at] & 15, at + 1
        if not kind:
            return fields, at
        if step:
            field += step
        else:
            field, at = _signed(data, at)
        if kind in _BOOLEANS:
            fields[field] = kind == _BOOLEANS[0]
        elif kind == _BYTE:
            fields[field], at = data[at], at + 1
        elif kind in _INTEGERS:
            fields[field], at = _signed(data, at)
        elif kind == _DOUBLE:
            at += 8
        elif kind == _BINARY:
            size, at = _number(data, at)
            fields[field], at = data[at : at + size], at + size
        elif kind == _STRUCT:
            fields[field], at = _struct(data, at)
        else:
            raise NotPlain
