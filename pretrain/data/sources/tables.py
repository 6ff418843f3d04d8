"""CSV and JSON-lines tables that name images by path or URL, with labels or captions in other columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster import storage
from cluster.errors import UserError, nearest
from pretrain.data.sources.records import Listing, Objects, Record, json_lines, numbers, read_text

# what people call the columns; the first one found is taken
PATHS = ("image", "path", "file_name", "filename", "file", "filepath", "image_path", "url", "image_url")
LABELS = ("label", "class", "category", "labels", "tags", "keywords")
CAPTIONS = ("caption", "captions", "text", "sentence", "sentences", "description")
SEVERAL = ("labels", "tags", "keywords")  # of these names a text is a list, parted by commas or bars
MAX_FIELD_CHARACTERS = 2**24


@dataclass(frozen=True)
class Columns:
    """Which columns to read; None looks for the usual names."""

    path: str | None = None
    label: str | None = None
    caption: str | None = None


def table_records(src: str, *, columns: Columns | None = None) -> Listing:
    """The images of a `.csv`, `.tsv` or `.jsonl` table.

    Relative paths are relative to the table's folder; URLs are taken as they are. The same path in several rows is one image
    with all their captions.

    Raises:
        UserError: naming the line, when the table cannot be read, or a column is not there.
    """
    rows = list(_jsonl_rows(src) if src.lower().endswith((".jsonl", ".ndjson")) else _csv_rows(src))
    if not rows:
        raise UserError(f"{src} has no rows")
    known = list(dict.fromkeys(key for _, row in rows for key in row))
    asked = columns or Columns()
    path_column = _column(src, "--path-column", asked.path, PATHS, known)
    if path_column is None:
        raise UserError(
            f"{src} has no column of paths (looked for {', '.join(PATHS)}; columns there: {', '.join(known)}); name it "
            "with --path-column"
        )
    label_column = _column(src, "--label-column", asked.label, LABELS, known)
    caption_column = _column(src, "--caption-column", asked.caption, CAPTIONS, known)
    folder = src.replace("\\", "/").rpartition("/")[0] or "."
    listing = Listing([])
    found: dict[str, Record] = {}
    for line, row in rows:
        place = f"{src}, line {line}"
        path = row.get(path_column)
        if not isinstance(path, str) or not path.strip():
            listing.problems.append((place, f"column {path_column!r} holds no path but {path!r}"))
            continue
        path = path.strip()
        label, labels = _labels(row.get(label_column) if label_column else None, label_column)
        captions = _texts(row.get(caption_column)) if caption_column is not None else None
        objects = _objects(row.get("objects"))
        url = path if "://" in path or path.startswith("/") else storage.join(folder, path)
        record = Record(url, path, label=label, labels=labels, objects=objects, captions=captions)
        earlier = found.get(path)
        if earlier is None:
            found[path] = record
        elif (earlier.label, earlier.labels) != (label, labels):
            listing.problems.append((place, f"{path} has label {label or labels} here and another one further up"))
        elif captions is not None:
            found[path] = Record(
                url, path, label=label, labels=labels, objects=objects, captions=(earlier.captions or ()) + captions
            )
    listing.records = [found[path] for path in sorted(found)]
    return listing


def _csv_rows(src: str) -> Iterator[tuple[int, dict[str, Any]]]:
    text = read_text(src)
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if src.lower().endswith(".tsv") else ",")
    try:
        for row in reader:
            row.pop(None, None)  # cells beyond the header
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{src}, line {reader.line_num}: not valid CSV: {error}") from error


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
        words = value if isinstance(value, list) else str(value or "").replace("|", ",").split(",")
        return None, tuple(str(word).strip() for word in words if str(word).strip())
    if value is None or isinstance(value, dict) or str(value) == "":
        return None, None
    return str(value), None


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if isinstance(text, str) and text.strip())


def _objects(value: Any) -> Objects | None:
    """The `objects` of Hugging Face's image folders (bbox x, y, width, height), or None."""
    if not isinstance(value, dict):
        return None
    bbox = value.get("bbox")
    names = value.get("category", value.get("categories"))
    if not isinstance(bbox, list) or not isinstance(names, list) or len(bbox) != len(names):
        return None
    boxes = [numbers(box, 4) for box in bbox]
    if any(box is None for box in boxes):
        return None
    return Objects(tuple((box[0], box[1], box[2], box[3]) for box in boxes if box), tuple(map(str, names)))
