"""CSV and JSON-lines tables that name images by path or URL, with labels or captions in other columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from cluster import storage
from cluster.errors import UserError, nearest
from cluster.secrets import masked
from cluster.stores import OTHER_NAMES, PACKAGES
from pretrain.data.sources.records import Listing, Record, json_lines, objects_of, read_text

# what people call the columns; the first one found is taken
PATHS = ("image", "path", "file_name", "filename", "file", "filepath", "image_path", "url", "image_url")
LABELS = ("label", "class", "category")
CAPTIONS = ("caption", "captions", "text", "sentence", "sentences", "description")
SEVERAL = ("labels", "tags", "keywords")  # a text there is a list, parted by commas or bars
PROTOCOLS = (*PACKAGES, *OTHER_NAMES, "abfs", "az", "file", "memory")  # a table is no place to open anything else from
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
METADATA = (
    "metadata.jsonl",
    "metadata.csv",
)  # a table in the folder it speaks of, as Hugging Face's image folders have
MAX_FIELD_CHARACTERS = 2**24


@dataclass(frozen=True)
class Columns:
    """Which columns to read; None looks for the usual names. `label` may be one of classes or of lists of them."""

    path: str | None = None
    label: str | None = None
    caption: str | None = None


def table_records(src: str, *, columns: Columns | None = None) -> Listing:
    """The images of a `.csv`, `.tsv` or `.jsonl` table, or of a folder with a `metadata.csv` or `metadata.jsonl`.

    Relative paths are relative to the table's folder; URLs are taken as they are. The same path in several rows is one image
    with all their captions. A row of JSON may have `objects` as Hugging Face's image folders have them.

    Raises:
        UserError: naming the line, when the table cannot be read, or a column is not there.
    """
    if not src.lower().endswith(SUFFIXES):
        names = storage.names_in(src)
        if not (here := [name for name in METADATA if name in names]):
            raise UserError(f"{src} is no {', '.join(SUFFIXES)} file, nor a folder with a {' or '.join(METADATA)}")
        src = storage.join(src, here[0])
    is_json = src.lower().endswith((".jsonl", ".ndjson"))
    rows = _jsonl_rows if is_json else _csv_rows
    # read twice, for a million rows as dictionaries take far more memory than their text
    known = list(dict.fromkeys(key for _, row in rows(src) for key in row))
    if not known:
        raise UserError(f"{src} has no rows")
    asked = columns or Columns()
    path_column = _column(src, "--path-column", asked.path, PATHS, known)
    if path_column is None:
        raise UserError(
            f"{src} has no column of paths (looked for {', '.join(PATHS)}; columns there: {', '.join(known)}); name it "
            "with --path-column"
        )
    label_column = _column(src, "--label-column", asked.label, LABELS, known)
    labels_column = None if asked.label is not None else _column(src, "", None, SEVERAL, known)
    caption_column = _column(src, "--caption-column", asked.caption, CAPTIONS, known)
    folder = src.replace("\\", "/").rpartition("/")[0] or "."
    listing = Listing([])
    found: dict[str, Record] = {}
    for line, row in rows(src):
        place = f"{src}, line {line}"
        try:
            path, url = _path(row.get(path_column), path_column, folder)
            objects = objects_of(row.get("objects")) if is_json else None
        except ValueError as error:
            listing.problems.append((place, str(error)))
            continue
        label, labels = _labels(row.get(label_column) if label_column else None, label_column)
        if labels_column is not None:
            labels = _labels(row.get(labels_column), labels_column)[1]
        captions = _texts(row.get(caption_column)) if caption_column is not None else None
        earlier = found.get(url)
        if earlier is None:
            found[url] = Record(url, path, label=label, labels=labels, objects=objects, captions=captions)
        elif (earlier.label, earlier.labels, earlier.objects) != (label, labels, objects):
            listing.problems.append((place, f"{path} has other labels or objects further up"))
        elif captions is not None:
            found[url] = replace(earlier, captions=(earlier.captions or ()) + captions)
    listing.records = sorted(found.values(), key=lambda record: record.path)
    return listing


def _path(value: Any, column: str, folder: str) -> tuple[str, str]:
    """(name, URL) of an image. Raises ValueError for what is neither a path nor a URL."""
    if not isinstance(value, str) or not value.strip() or set(value.strip()) & set("\0\n\r"):
        raise ValueError(f"column {column!r} holds no path but {value!r}")
    path = value.strip()
    protocol, is_url, _ = path.partition("://")
    if not is_url:
        return path, path if path.startswith("/") else storage.join(folder, path)
    if protocol not in PROTOCOLS or "::" in path:
        raise ValueError(f"column {column!r} holds {masked(path)!r}, which is no URL of {', '.join(sorted(PROTOCOLS))}")
    return masked(path), path  # the name goes into the shards, where no key belongs


def _csv_rows(src: str) -> Iterator[tuple[int, dict[str, Any]]]:
    text = read_text(src)
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    header = text.partition("\n")[0]
    # spreadsheets write semicolons where the comma is the decimal sign
    delimiter = "\t" if src.lower().endswith(".tsv") else ";" if ";" in header and "," not in header else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in reader:
            row.pop(None, None)  # cells beyond the header
            yield reader.line_num, row
            line = reader.line_num + 1
    except csv.Error as error:  # a quote that is never closed is found at the end only, so the row's first line is said
        raise UserError(f"{src}, line {line}: not valid CSV: {error}") from error


def _jsonl_rows(src: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, row in json_lines(src):
        if not isinstance(row, dict):
            raise UserError(f"{src}, line {line}: must be an object like {{...}}, not {type(row).__name__}")
        yield line, row


def _column(src: str, option: str, asked: str | None, usual: tuple[str, ...], known: list[str]) -> str | None:
    if asked is not None:
        if asked not in known:
            raise UserError(
                f"{src} has no column {asked!r}, as {option} says{nearest(asked, known)} (columns there: {', '.join(known)})"
            )
        return asked
    return next((name for name in usual if name in known), None)


def _labels(value: Any, column: str | None) -> tuple[str | None, tuple[str, ...] | None]:
    """(label, labels): one of them, or neither."""
    if column in SEVERAL or isinstance(value, list):
        words = value if isinstance(value, list) else str("" if value is None else value).replace("|", ",").split(",")
        return None, tuple(str(word).strip() for word in words if word is not None and str(word).strip())
    if value is None or isinstance(value, dict) or str(value) == "":
        return None, None
    return str(value), None


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if isinstance(text, str) and text.strip())
