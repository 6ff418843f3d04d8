"""What a source of images lists: one record an image, nothing read yet."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

from cluster import storage
from cluster.errors import UserError
from cluster.retrying import DEFAULT_PATIENCE, Patience

MAX_ANNOTATION_BYTES = 4 * 2**30  # a whole COCO is 0.5 GiB; nothing larger is read into memory
MAX_SMALL_BYTES = 64 * 2**20  # of the annotation of a single image
REMOTE_THREADS = 32
# of images anywhere in the web many are gone for good; two minutes for each dead host would make weeks of a long list
PATIENCE_WITH_THE_WEB = Patience(attempts=4, total_seconds=15)

Item = TypeVar("Item")
Result = TypeVar("Result")


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
        label, labels, objects, captions: what is known of it; None where the source does not say such things.
        relative_boxes: the boxes are shares of the image's sides in place of pixels.
    """

    url: str
    path: str
    size_bytes: int = 0
    label: str | None = None
    labels: tuple[str, ...] | None = None
    objects: Objects | None = None
    captions: tuple[str, ...] | None = None
    relative_boxes: bool = False

    def read(self) -> bytes:
        """The encoded image. Raises UserError, or ValueError for a URL that is none, when it cannot be read."""
        web = self.url.startswith(("http://", "https://"))
        return storage.read_bytes(self.url, patience=PATIENCE_WITH_THE_WEB if web else DEFAULT_PATIENCE)


@dataclass
class Listing:
    """All records of a source, and what is wrong with single annotations: (place, reason), which goes to the quarantine."""

    records: list[Record]
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def as_text(record: Record) -> Record:
    """The record with `?` for what UTF-8 cannot hold: file names in other encodings, halves of characters in JSON."""
    texts = (record.path, record.label or "", *(record.labels or ()), *(record.captions or ()))
    try:
        "".join((*texts, *(record.objects.category if record.objects else ()))).encode()
    except UnicodeEncodeError:
        objects = record.objects
        return replace(  # `url` stays: it is what opens the file
            record,
            path=_text(record.path),
            label=None if record.label is None else _text(record.label),
            labels=None if record.labels is None else tuple(map(_text, record.labels)),
            captions=None if record.captions is None else tuple(map(_text, record.captions)),
            objects=None if objects is None else Objects(objects.bbox, tuple(map(_text, objects.category))),
        )
    return record


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def in_order(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """`function` of all items by a pool of threads, in their order, with a bounded number on the way."""
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="import")
    rest = iter(items)
    on_the_way: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(rest, 4 * num_threads))
    try:
        while on_the_way:
            yield on_the_way.popleft().result()
            on_the_way.extend(pool.submit(function, item) for item in islice(rest, 1))
    finally:
        pool.shutdown(
            wait=False, cancel_futures=True
        )  # an interrupt does not wait for reads that are being tried again


def read_small(files: Iterable[storage.FileInfo | None]) -> Iterator[bytes]:
    """The contents of annotation files of single images, in order; none where there is no file.

    Raises UserError naming the file that is missing or huge.
    """

    def read(file: storage.FileInfo | None) -> bytes:
        if file is None:
            return b""
        if file.size_bytes > MAX_SMALL_BYTES:
            raise UserError(
                f"{file.url} has {file.size_bytes} bytes; annotations of one image with more than {MAX_SMALL_BYTES} "
                "are not read"
            )
        return storage.read_bytes(file.url)

    return in_order(read, files, REMOTE_THREADS)


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
    for number, line in enumerate(read_text(url).split("\n"), 1):  # splitlines would also part at U+2028 in a caption
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


def objects_of(value: Any) -> Objects | None:
    """The `objects` of Hugging Face's image folders, {bbox: [[x, y, width, height]], category: [name]}; None without.

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
        boxes.append((four[0], four[1], four[2], four[3]))
    return Objects(tuple(boxes), tuple(map(str, names)))


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
