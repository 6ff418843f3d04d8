"""What a source of images lists: one record an image, nothing read yet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster import storage
from cluster.errors import UserError

MAX_ANNOTATION_BYTES = 4 * 2**30  # a whole COCO is 0.5 GiB; nothing larger is read into memory


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of an image: boxes (x, y, width, height) in pixels, and a class name for each."""

    bbox: tuple[tuple[float, float, float, float], ...]
    category: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One image to pack.

    Attributes:
        url: the file that holds its bytes.
        path: names it in the shards; unique within a source.
        size_bytes: of the encoded image where the listing tells it, else 0.
        offset: where its bytes begin in the file; a member of a tar has one.
        label, labels, objects, captions: what is known of it; None where the source does not say such things.
        relative_boxes: the boxes are shares of the image's sides in place of pixels.
    """

    url: str
    path: str
    size_bytes: int = 0
    offset: int | None = None
    label: str | None = None
    labels: tuple[str, ...] | None = None
    objects: Objects | None = None
    captions: tuple[str, ...] | None = None
    relative_boxes: bool = False

    def read(self) -> bytes:
        """The encoded image. Raises UserError when it cannot be read."""
        if self.offset is None:
            return storage.read_bytes(self.url)
        fs, path = storage.filesystem(self.url)
        with storage.explained("read", self.url):
            data: bytes = fs.cat_file(path, start=self.offset, end=self.offset + self.size_bytes)
        return data


@dataclass
class Listing:
    """All records of a source, and what is wrong with single annotations: (place, reason), which goes to the quarantine."""

    records: list[Record]
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_text(url: str) -> str:
    """An annotation file as text. Raises UserError when it is missing, huge or not UTF-8."""
    fs, path = storage.filesystem(url)
    with storage.explained("read", url):
        size = fs.info(path)["size"] or 0
    if size > MAX_ANNOTATION_BYTES:
        raise UserError(f"{url} has {size} bytes; annotation files of more than {MAX_ANNOTATION_BYTES} are not read")
    try:
        return storage.read_bytes(url).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{url} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def read_json(url: str) -> Any:
    """A JSON file's content. Raises UserError when it is missing or damaged."""
    try:
        return json.loads(read_text(url))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{url} is not valid JSON: {error}") from error


def json_lines(url: str) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of each line that is not empty. Raises UserError naming the line."""
    for number, line in enumerate(read_text(url).splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{url}, line {number}: not valid JSON: {error}") from error


def numbers(values: Any, num: int) -> tuple[float, ...] | None:
    """`num` finite numbers, or None for anything else."""
    if not isinstance(values, list | tuple) or len(values) != num:
        return None
    try:
        floats = tuple(float(value) for value in values if not isinstance(value, bool | str))
    except (TypeError, ValueError, OverflowError):
        return None
    return floats if len(floats) == num and all(abs(value) < 1e9 for value in floats) else None


def files_below(folder: str, suffixes: tuple[str, ...]) -> dict[str, storage.FileInfo]:
    """path below the folder -> file, for names with these endings, whatever their case."""
    fs, root = storage.filesystem(folder)
    prefix = (root if storage.is_local(folder) else fs.unstrip_protocol(root)).rstrip("/") + "/"
    files = storage.find_files(folder, "")
    return {file.url.removeprefix(prefix): file for file in files if file.url.lower().endswith(suffixes)}


def unique(records: Iterable[Record], source: str) -> list[Record]:
    """The records by path. Raises UserError when a path comes twice."""
    found: dict[str, Record] = {}
    for record in records:
        if record.path in found:
            raise UserError(f"{source} lists the image {record.path} twice; give each image one entry")
        found[record.path] = record
    return [found[path] for path in sorted(found)]
