"""What a source of images lists, and how annotation files are read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster import storage
from cluster.errors import UserError
from pretrain.data.packing.sources.file_table import TextRun
from pretrain.data.packing.sources.image_record import Objects
from pretrain.data.packing.sources.parallel import REMOTE_THREADS, in_order
from pretrain.data.packing.sources.record_list import Records
from pretrain.data.packing.sources.texts import clean, decode_lines, decode_text
from pretrain.data.packing.sources.tree import Tree

MAX_ANNOTATION_BYTES = 4 * 2**30  # a whole COCO is 0.5 GiB; nothing larger is read into memory
MAX_SMALL_BYTES = 64 * 2**20  # of the annotation of a single image

BOX_MEANINGS = ("xywh", "xyxy", "cxcywh", "fractions")  # values of --boxes


@dataclass
class Account:
    """What became of the files of a source that are no packed images,
    and of all that lies in annotation files.

    Attributes:
        read: paths of files that were read as annotation.
        left: path -> why it was passed over, where the kind of source knows it better than the file's ending
            does.
        annotations: how many boxes, captions, labels and rows the source holds, good or bad.
        counts, examples: of things that are no files: what was left out and why.
        said: those of `counts` that a note of their own speaks of, or that lose nothing.
        unlisted: what an image is that no record names.
    """

    read: set[str] = field(default_factory=set)
    left: dict[str, str] = field(default_factory=dict)
    annotations: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    unlisted: str = "image not named in any annotation"

    def count(self, kind: str, example: str, num: int = 1, *, said: bool = False) -> None:
        """Counts things that were left out."""
        if num:
            self.counts[kind] += num
            self.examples.setdefault(kind, example)
            if said:
                self.said.add(kind)

    def notes(self) -> list[str]:
        """What should be said of the things that were counted."""
        return [
            f"{num} x {kind} (first: {self.examples[kind]})"
            for kind, num in sorted(self.counts.items())
            if kind not in self.said
        ]


@dataclass
class Listing:
    """All records of a source, and what is wrong with single annotations:
    (location, reason), which goes to the quarantine.

    `told` says what the source was taken for, and why; `tree` are its files, as far as they are known.
    """

    records: Records = field(default_factory=Records)
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    account: Account = field(default_factory=Account)
    told: str = ""
    kind: str = ""
    tree: Tree | None = None


def read_small(files: Iterable[storage.FileInfo | None]) -> Iterator[bytes]:
    """The contents of annotation files of single images, in order; none where there is no file.

    Raises UserError naming the file that is missing or huge.
    """

    def read(file: storage.FileInfo | None) -> bytes:
        if file is None:
            return b""
        if file.size_bytes > MAX_SMALL_BYTES:
            raise UserError(
                f"{file.url} has {file.size_bytes} bytes; annotations of one image with more than "
                f"{MAX_SMALL_BYTES} are not read"
            )
        return storage.read_bytes(file.url)

    return in_order(read, files, REMOTE_THREADS)


def read_text(url: str) -> str:
    """An annotation file as text. Raises UserError when it is missing, huge,
    or neither UTF-8 nor marked as UTF-16.
    """
    text, encoding = read_any_text(url)
    if encoding == "cp1252":
        raise UserError(f"{url} is not UTF-8 text; save it as UTF-8")
    return text


def read_any_text(url: str) -> tuple[str, str]:
    """(text, encoding) of an annotation file, Windows-1252 where it is no UTF-8.
    Raises UserError when it cannot be read.
    """
    return _read_text(url, decode_text)


def read_lines_text(url: str) -> tuple[str, str]:
    """The same of a file of lines, of which a few may hold bytes that are not UTF-8,
    as `decode_lines` has it.
    """
    return _read_text(url, decode_lines)


def check_size(url: str) -> None:
    """Raises UserError when an annotation file is missing or huge."""
    fs, path = storage.filesystem(url)
    with storage.explained("read", url):
        size = fs.info(path)["size"] or 0
    if size > MAX_ANNOTATION_BYTES:
        raise UserError(
            f"{url} has {size} bytes; annotation files of more than {MAX_ANNOTATION_BYTES} are not read"
        )


def _read_text(url: str, decode: Callable[[bytes], tuple[str, str]]) -> tuple[str, str]:
    check_size(url)
    try:
        return decode(storage.read_bytes(url))
    except ValueError as error:
        raise UserError(f"{url} is {error}; save it as UTF-8") from error


def read_json(url: str) -> Any:
    """A JSON file's content. Raises UserError when it is missing or damaged."""
    try:
        return json.loads(read_text(url))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{url} is not valid JSON: {error}") from error


def numbers(values: Any, num: int) -> tuple[float, ...] | None:
    """`num` finite numbers, or None for anything else."""
    if not isinstance(values, list | tuple) or len(values) != num:
        return None
    try:
        floats = tuple(float(value) for value in values if not isinstance(value, bool))
    except (TypeError, ValueError, OverflowError):
        return None
    return floats if len(floats) == num and all(abs(value) < 1e9 for value in floats) else None


def objects_of(value: Any, meaning: str = "xywh") -> Objects | None:
    """The `objects` of Hugging Face's image folders, {bbox: [[x, y, width, height]], category: [name]};
    None without.

    Raises ValueError that says what is wrong with it.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"objects must be {{bbox: [...], category: [...]}}, not {str(value)[:60]!r}")
    bbox, names = value.get("bbox"), value.get("category", value.get("categories"))
    if not isinstance(bbox, list) or not isinstance(names, list) or len(bbox) != len(names):
        raise ValueError("objects needs the lists bbox and category, equally long")
    boxes = []
    for index, box in enumerate(bbox):
        if (four := numbers(box, 4)) is None:
            raise ValueError(f"objects.bbox[{index}] must be four numbers, not {str(box)[:60]!r}")
        boxes.append(as_sizes(four, meaning))
    return Objects(tuple(boxes), tuple(clean(str(name)) for name in names))


def as_sizes(numbers: Iterable[float], meaning: str) -> tuple[float, float, float, float]:
    """(left, top, width, height) of four numbers of that meaning, one of `BOX_MEANINGS`;
    fractions stay fractions.
    """
    a, b, c, d = numbers
    if meaning == "xyxy":
        return a, b, c - a, d - b
    if meaning == "cxcywh":
        return a - c / 2, b - d / 2, c, d
    return a, b, c, d


def around(points: Iterable[tuple[float, float]]) -> tuple[float, float, float, float]:
    """The box (left, top, width, height) around points. Raises ValueError for none."""
    xs, ys = zip(*points)
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def unique(records: Records, source: str) -> Records:
    """The records by path. Raises UserError when a path comes twice."""
    paths = TextRun(records.paths())
    order = paths.order()
    if (again := paths.first_again(order)) is not None:
        raise UserError(f"{source} lists the image {paths[again]} twice; give each image one entry")
    return records.taken(order)
