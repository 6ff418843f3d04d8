"""Rows of tables, whatever program wrote them: CSV with any delimiter, JSON lines, lists of JSON objects, Parquet of text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import UserError
from pretrain.data.sources.records import json_lines, read_any_text, read_json
from pretrain.data.sources.texts import clean

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")
JSON_LINES = (".jsonl", ".ndjson")
MAX_FIELD_CHARACTERS = 2**24
DELIMITERS = ",;\t|"


class Rows:
    """The rows of a table, which can be read several times.

    Attributes:
        src: the table's URL.
        columns: the names of its columns, as they stand there but for blanks around them.
        nested: whether cells may be lists and objects, as in JSON.
        has_header: False where the first line of a CSV is a row like the others.
        notes: what should be said of the file as a whole.
    """

    def __init__(self, src: str) -> None:
        self.src, self.notes = src, list[str]()
        lower = src.lower()
        self.nested = lower.endswith((*JSON_LINES, ".json", ".parquet", ".pq"))
        self.too_long: list[int] = []  # lines with more cells than the header has
        self._text, self._delimiter = "", ","
        self._lines_before = 0
        if lower.endswith((".csv", ".tsv")):
            self._open_csv(lower)
        elif lower.endswith((".parquet", ".pq")):
            try:
                with storage.open_input(src) as source:
                    self.columns = list(pq.read_schema(source).names)
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{src} cannot be read: {str(error).splitlines()[0]}") from error
        else:
            # read twice, for a million rows as dictionaries take far more memory than their text
            self.columns = list(dict.fromkeys(key for _, row in self for key in row))
        if not self.columns:
            raise UserError(f"{src} has no rows")

    def _open_csv(self, lower: str) -> None:
        self._text, encoding = read_any_text(self.src)
        if encoding != "utf-8":
            self.notes.append(f"{self.src} is no UTF-8 text and was read as {encoding}")
        first, _, rest = self._text.partition("\n")
        if first.strip().lower().startswith("sep=") and len(first.strip()) == 5:  # Excel's
            self._delimiter = first.strip()[4]
            self._text, self._lines_before = rest, 1
        else:
            self._delimiter = "\t" if lower.endswith(".tsv") else _delimiter(first)
        reader = self._reader()
        try:
            header: list[str] = next(reader, [])
        except csv.Error as error:
            raise UserError(f"{self.src}, line 1: not valid CSV: {error}") from error
        self.columns = [clean(cell) or f"column {number}" for number, cell in enumerate(header, 1)] if header else []
        if len(self.columns) == 2 and all(self.columns) and len(set(self.columns)) < 2:
            raise UserError(f"{self.src} has two columns named {self.columns[0]!r}; rename one")

    def _reader(self) -> Any:
        csv.field_size_limit(MAX_FIELD_CHARACTERS)
        return csv.reader(
            io.StringIO(self._text, newline=""), delimiter=self._delimiter, strict=True, skipinitialspace=True
        )

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line number, column -> cell) of each row; a CSV's line with more cells than the header comes as an empty dict.

        Raises UserError that names the line which cannot be read.
        """
        lower = self.src.lower()
        if lower.endswith((".csv", ".tsv")):
            yield from self._csv_rows()
        elif lower.endswith((".parquet", ".pq")):
            yield from self._parquet_rows()
        else:
            numbered = json_lines(self.src) if lower.endswith(JSON_LINES) else _items(self.src)
            for line, row in numbered:
                if not isinstance(row, dict):
                    raise UserError(
                        f"{self.src}, line {line}: must be an object like {{...}}, not {type(row).__name__}"
                    )
                yield line, row

    def _csv_rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        reader = self._reader()
        line = 1 + self._lines_before
        try:
            next(reader, None)
            for cells in reader:
                if cells and any(cell.strip() for cell in cells):
                    too_long = len(cells) > len(self.columns) and any(
                        cell.strip() for cell in cells[len(self.columns) :]
                    )
                    yield (
                        reader.line_num + self._lines_before,
                        {} if too_long else dict(zip(self.columns, cells, strict=False)),
                    )
                line = reader.line_num + 1 + self._lines_before
        except (
            csv.Error
        ) as error:  # a quote that is never closed is found at the end only, so the row's first line is said
            raise UserError(f"{self.src}, line {line}: not valid CSV: {error}") from error

    def _parquet_rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            with storage.open_input(self.src) as source:
                line = 0
                for batch in pq.ParquetFile(source).iter_batches(1024):
                    for row in batch.to_pylist():
                        line += 1
                        yield line, row
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.src} cannot be read: {str(error).splitlines()[0]}") from error


def _items(src: str) -> Iterator[tuple[int, Any]]:
    tree = read_json(src)
    if isinstance(tree, dict):  # one list under some name, as {"data": [...]}
        lists = [value for value in tree.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        tree = lists[0] if len(lists) == 1 else tree
    if not isinstance(tree, list):
        raise UserError(
            f"{src} is no list of objects like [{{...}}, ...]; nor is it a COCO json, which has a list `images`"
        )
    yield from enumerate(tree, 1)


def _delimiter(header: str) -> str:
    """The delimiter of a CSV by its first line; what stands in quotes parts nothing."""
    outside = "".join(header.split('"')[::2])
    if "," in outside:
        return ","
    return next((sign for sign in DELIMITERS if sign in outside), ",")


def json_cell(text: Any) -> Any:
    """What a cell of a CSV holds as JSON text, such as `{"bbox": ...}`; the cell itself where it does not."""
    if isinstance(text, str) and text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text
