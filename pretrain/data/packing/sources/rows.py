"""Rows of tables, whatever program wrote them: CSV with any delimiter, JSON lines and lists, Parquet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import UserError
from pretrain.data.packing.sources.json_stream import json_text
from pretrain.data.packing.sources.records import read_json, read_lines_text
from pretrain.data.packing.sources.texts import clean, has_bad_bytes

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")
JSON_LINES = (".jsonl", ".ndjson")
MAX_FIELD_CHARACTERS = 2**24
MAX_LINES = 200  # of a row; a quote that stays open for longer was probably never closed
DELIMITERS = ",;\t|"
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r|\Z)")


@dataclass(frozen=True)
class BadLine:
    """A line of a table that cannot be read; `cells` are those that could be, where some could."""

    reason: str
    cells: tuple[str, ...] = ()


class Rows:
    """The rows of a table, to be read several times; a line that cannot be read costs itself alone.

    Attributes:
        src: the table's URL.
        columns: the names of its columns, as they are there, without blanks around them.
        nested: whether cells may be lists and objects, as in JSON.
        has_header: False where the first line of a CSV is a row like the others.
        notes: what should be said of the file as a whole.
    """

    def __init__(self, src: str) -> None:
        self.src, self.notes = src, list[str]()
        lower = src.lower()
        self.nested = lower.endswith((*JSON_LINES, ".json", ".parquet", ".pq"))
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
            self.columns = list(dict.fromkeys(key for _, row in self.good() for key in row))
        if not self.columns:
            raise UserError(f"{src} has no rows")

    def _open_csv(self, lower: str) -> None:
        self._text, encoding = read_lines_text(self.src)
        if encoding != "utf-8":
            self.notes.append(f"{self.src} is not UTF-8 text and was read as {encoding}")
        first, _, rest = self._text.partition("\n")
        if first.strip().lower().startswith("sep=") and len(first.strip()) == 5:  # Excel's
            self._delimiter = first.strip()[4]
            self._text, self._lines_before = rest, 1
        else:
            self._delimiter = "\t" if lower.endswith(".tsv") else _delimiter(first)
        try:
            header: list[str] = next(self._reader(_Text(self._text)), [])
        except csv.Error as error:
            raise UserError(f"{self.src}, line 1: not valid CSV: {error}") from error
        self.columns = []
        for number, cell in enumerate(header, 1):
            name = clean(cell) or f"column {number}"
            # of several columns of a name the first has it; the others are said to be not read
            self.columns.append(name if name not in self.columns else f"{name} (column {number})")

    def _reader(self, lines: Iterable[str]) -> Any:
        csv.field_size_limit(MAX_FIELD_CHARACTERS)
        return csv.reader(lines, delimiter=self._delimiter, strict=True, skipinitialspace=True)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
        """(line number, column -> cell, or what is wrong) of each row."""
        lower = self.src.lower()
        if lower.endswith((".csv", ".tsv")):
            yield from self._csv_rows()
        elif lower.endswith((".parquet", ".pq")):
            yield from self._parquet_rows()
        else:
            numbered = self._json_lines() if lower.endswith(JSON_LINES) else _items(self.src)
            for line, row in numbered:
                is_row = isinstance(row, dict | BadLine)
                yield (
                    line,
                    row if is_row else BadLine(f"must be an object like {{...}}, not {type(row).__name__}"),
                )

    def good(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Those that can be read."""
        return ((line, row) for line, row in self if not isinstance(row, BadLine))

    def _csv_rows(self) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
        text = _Text(self._text)
        next(self._reader(text), None)
        first_line = 1 + self._lines_before + self._text.count("\n", 0, text.tell())
        while True:
            begin, lines = text.tell(), _Lines(text)
            reader, bad = self._reader(lines), ""
            cells: list[str] = []
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                bad = f"not valid CSV: {error}"
            too_long = any(cell.strip() for cell in cells[len(self.columns) :])
            if too_long and lines.num > 1:  # a quote that is closed in another row
                bad = "not valid CSV: a quote is not closed"
            if bad:
                text.seek(begin)  # only the line in which it begins is lost
                cells = text.readline().rstrip("\r\n").split(self._delimiter)
                yield first_line, BadLine(bad, tuple(cells))
                first_line += 1
                continue
            if has_bad_bytes("".join(cells)):
                yield first_line, BadLine("bytes that are not UTF-8", tuple(cells))
            elif too_long:
                what = (
                    f"more cells than the {len(self.columns)} of the header; put texts with commas into "
                    "quotes"
                )
                yield first_line, BadLine(what, tuple(cells))
            elif any(cell.strip() for cell in cells):
                yield first_line, dict(zip(self.columns, cells, strict=False))
            first_line += lines.num

    def _json_lines(self) -> Iterator[tuple[int, Any]]:
        text, _ = read_lines_text(self.src)
        for number, line in enumerate(_parted(text), 1):
            if has_bad_bytes(line):
                yield number, BadLine("bytes that are not UTF-8")
            elif line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield number, BadLine(f"not valid JSON: {error}")

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


class _Text:
    """The lines of a text, as a file opened with `newline=""` has them, without a copy of all."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def tell(self) -> int:
        """Where the next line begins."""
        return self._at

    def seek(self, at: int) -> None:
        """Goes on from there."""
        self._at = at

    def readline(self) -> str:
        """The next line with its end; an empty text behind the last."""
        match = _LINE.match(self._text, self._at)
        assert match is not None  # it matches anything
        self._at = match.end()
        return match.group()

    def __iter__(self) -> Iterator[str]:
        return iter(self.readline, "")


class _Lines:
    """Lines of a text for one row of CSV; `num` were taken."""

    def __init__(self, text: _Text) -> None:
        self._text, self.num = text, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.num == MAX_LINES:
            raise csv.Error("a quote is not closed")
        line = self._text.readline()
        if not line:
            raise StopIteration
        self.num += 1
        return line


def _parted(text: str) -> Iterator[str]:
    """Lines, one after the other; `splitlines` would also part at U+2028 in a caption."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _items(src: str) -> Iterator[tuple[int, Any]]:
    with json_text(src) as text:
        if text.sign() == "[":
            yield from enumerate(text.items(), 1)
            text.end()
            return
    tree = read_json(src)
    if isinstance(tree, dict):  # one list under some name, as {"data": [...]}
        lists = [
            value
            for value in tree.values()
            if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        tree = lists[0] if len(lists) == 1 else tree
    if not isinstance(tree, list):
        raise UserError(
            f"{src} is not a list of objects like [{{...}}, ...], nor a COCO json, which has a list `images`"
        )
    yield from enumerate(tree, 1)


def _delimiter(header: str) -> str:
    """The delimiter of a CSV by its first line; what stands in quotes parts nothing."""
    outside = "".join(header.split('"')[::2])
    if "," in outside:
        return ","
    return next((sign for sign in DELIMITERS if sign in outside), ",")


def json_cell(text: Any) -> Any:
    """What a cell of a CSV holds as JSON text, such as `{"bbox": ...}`; other cells as they are."""
    if isinstance(text, str) and text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def path_in(cell: Any) -> Any:
    """The path of an image in a cell, which may be Hugging Face's {"path": ..., "bytes": null}."""
    return cell.get("path") if isinstance(cell, dict) else cell
