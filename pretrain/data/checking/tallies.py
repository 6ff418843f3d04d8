"""What `check` counts: classes over all rows, captions and boxes over the rows that it looks at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import UserError
from cluster.storage import FileInfo
from pretrain.data.images.geometry import BoxCheck
from pretrain.data.reading.annotation_columns import BoxColumn, CaptionColumn, ClassColumn
from pretrain.data.reading.annotations import (
    Boxes,
    crowds_in,
    name_of_class,
    read_boxes,
    read_captions,
    value_of,
    values_of,
)
from pretrain.data.reading.footers import folder_columns
from pretrain.data.reading.manifest import Manifest
from pretrain.data.reading.naming import named, names_in

BATCH_ROWS = 1024
COUNT_THREADS = 8


def count_classes(files: Sequence[FileInfo], column: ClassColumn) -> dict[str, Any]:
    """Rows of each class, most frequent first, over the whole data set; only this column is read."""

    def count(url: str) -> tuple[Counter[Any], int]:
        values: Counter[Any] = Counter()
        num_empty = 0
        with storage.open_input(url) as source, _explained(url, column.column):
            parquet = _open(source)
            if column.column not in parquet.schema_arrow.names:
                return Counter({folder_columns(url).get(column.column): parquet.metadata.num_rows}), 0
            names = names_in(parquet.schema_arrow, column.column)
            for batch in parquet.iter_batches(BATCH_ROWS * 16, columns=[column.column], use_threads=False):
                array = batch.column(column.column)
                if column.is_list:
                    if pa.types.is_list_view(array.type) or pa.types.is_large_list_view(array.type):
                        array = array.cast(pa.large_list(array.type.value_type))
                    num_empty += array.null_count + int(
                        pc.sum(pc.equal(pc.list_value_length(array), 0)).as_py() or 0
                    )
                    array = array.flatten()
                if pa.types.is_string_view(array.type):  # pyarrow 26 counts its nulls as empty texts
                    values.update(values_of(array))
                    continue
                pairs = pc.value_counts(array)
                for value, num in zip(values_of(pairs.field(0)), pairs.field(1).to_pylist(), strict=True):
                    values[named(value, names)] += num
        return values, num_empty

    counts: Counter[Any] = Counter()
    num_empty = 0
    with ThreadPoolExecutor(COUNT_THREADS, thread_name_prefix="count") as pool:
        for values, empty in pool.map(count, [file.url for file in files]):
            counts.update(values)
            num_empty += empty
    if not column.is_list:
        num_empty = counts[None]
    texts = {"(not UTF-8)" if value == b"" else name_of_class(value): num for value, num in counts.items()}
    return {
        "is_list": column.is_list,
        "classes": len(counts.keys() - {None}),
        "values": sum(counts.values()) - counts[None],
        "rows_without": num_empty,
        "counts": dict(sorted(texts.items(), key=lambda item: (-item[1], item[0]))),
    }


def annotations_of(
    manifest: Manifest, row_ids: np.ndarray, columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """These columns of rows with ascending ids, as `read_*` take them; text need not be UTF-8 here."""
    if not columns:
        yield from ({} for _ in row_ids)
        return
    for file_index, groups in _by_file(manifest, row_ids):
        url = manifest.files[file_index].url
        with storage.open_input(url) as source, _explained(url, ", ".join(columns)):
            parquet = _open(source)
            schema = parquet.schema_arrow
            in_file = {name: names_in(schema, name) for name in columns if name in schema.names}
            in_folders = {name: folder_columns(url).get(name) for name in columns if name not in in_file}
            for group, wanted in groups:
                group_in_file, position = int(manifest.group_in_file[group]), 0
                if not in_file:
                    yield from (dict(in_folders) for _ in wanted)
                    continue
                batches = parquet.iter_batches(
                    BATCH_ROWS, row_groups=[group_in_file], columns=list(in_file), use_threads=False
                )
                for batch in batches:
                    chosen = wanted[(wanted >= position) & (wanted < position + batch.num_rows)] - position
                    arrays = {name: batch.column(name) for name in in_file}
                    # not by take(), which does not know every type, string_view for one
                    for row in chosen.tolist():
                        found = {
                            name: named(value_of(array[row]), in_file[name])
                            for name, array in arrays.items()
                        }
                        yield found | in_folders
                    position += batch.num_rows
                    if position > wanted[-1]:
                        break


def by_group(manifest: Manifest, row_ids: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(row group, rows in it, their ids) for ascending row ids."""
    groups, rows = manifest.locate(row_ids)
    found, starts = np.unique(groups, return_index=True)
    for group, start, stop in zip(found.tolist(), starts, [*starts[1:], len(row_ids)], strict=True):
        yield group, rows[start:stop], row_ids[start:stop]


def _by_file(manifest: Manifest, row_ids: np.ndarray) -> Iterator[tuple[int, list[tuple[int, np.ndarray]]]]:
    of_file: list[tuple[int, np.ndarray]] = []
    current = -1
    for group, rows, _ in by_group(manifest, row_ids):
        file_index = int(manifest.file_of_group[group])
        if file_index != current and of_file:
            yield current, of_file
            of_file = []
        current = file_index
        of_file.append((group, rows))
    if of_file:
        yield current, of_file


def _open(source: Any) -> pq.ParquetFile:
    return pq.ParquetFile(source, pre_buffer=False, buffer_size=2**20)


@contextmanager
def _explained(url: str, what: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{url}: cannot read {what}: {str(error).splitlines()[0]}") from error


class CaptionTally:
    """Counts captions row by row."""

    def __init__(self, column: CaptionColumn) -> None:
        self.column = column
        self._rows_with = self._rows_without = self._captions = self._blank = self._characters = (
            self._words
        ) = 0

    def add(self, value: Any) -> list[str]:
        """Counts a row and returns its captions. Raises BadAnnotation."""
        captions = read_captions(value)
        num_given = len(value) if isinstance(value, list) else int(value is not None)
        self._rows_with += bool(captions)
        self._rows_without += not captions
        self._captions += len(captions)
        self._blank += num_given - len(captions)
        self._characters += sum(map(len, captions))
        self._words += sum(len(caption.split()) for caption in captions)
        return captions

    def report(self) -> dict[str, Any]:
        """Counts, and mean lengths in characters and words (None without captions)."""
        return {
            "column": self.column.column,
            "captions": self._captions,
            "rows_with": self._rows_with,
            "rows_without": self._rows_without,
            "empty": self._blank,
            "mean_characters": round(self._characters / self._captions, 2) if self._captions else None,
            "mean_words": round(self._words / self._captions, 2) if self._captions else None,
        }


class BoxTally:
    """Counts boxes row by row, and finds out whether their numbers mean something else than was said."""

    def __init__(self, column: BoxColumn) -> None:
        self.column = column
        self._classes: Counter[str] = Counter()
        self._rows = self._rows_without = self._boxes = self._degenerate = self._max_per_row = (
            self._crowds
        ) = 0
        self._box_check = BoxCheck(column.box_format)

    def add(self, value: Any, size: tuple[int, int] | None) -> Boxes:
        """Counts and returns a row's boxes. `size`: (width, height), None if bad. Raises BadAnnotation."""
        boxes = read_boxes(value, self.column)
        self._rows += 1
        self._rows_without += not boxes
        self._boxes += len(boxes)
        self._crowds += sum(crowds_in(value, self.column))
        self._max_per_row = max(self._max_per_row, len(boxes))
        self._classes.update(map(name_of_class, boxes.classes))
        self._degenerate += int(boxes.degenerate().sum())
        if size is not None:
            self._box_check.add(boxes.xyxy_N4, size)
        return boxes

    def report(self) -> dict[str, Any]:
        """Counts; boxes of bad images have no size to compare with, so `outside` knows nothing of them."""
        by_count = sorted(self._classes.items(), key=lambda item: (-item[1], item[0]))
        complaint = self._box_check.complaint(f"the boxes in column {self.column.column!r}", "--box-format")
        return {
            "column": self.column.column,
            "box_format": self.column.box_format,
            "boxes": self._boxes,
            "rows_without": self._rows_without,
            "mean_per_row": round(self._boxes / self._rows, 2) if self._rows else None,
            "max_per_row": self._max_per_row,
            "outside": self._box_check.outside,
            "degenerate": self._degenerate,
            "crowds": self._crowds,
            "classes": dict(by_count) if self.column.class_field is not None else None,
            "advice": [] if complaint is None else [complaint],
        }
