"""What is in a data set: files, row groups, columns, classes; of a sample: images, captions, boxes."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from cluster import storage
from cluster.errors import UserError
from cluster.progress import ProgressLine
from cluster.secrets import masked
from pretrain.data.checking.columns import AnnotationColumns, Asked
from pretrain.data.checking.row_groups import describe_groups, spread
from pretrain.data.checking.tallies import BoxTally, CaptionTally, annotations_of, by_group, count_classes
from pretrain.data.hashing import DIGEST_BYTES, image_digest
from pretrain.data.images.decode import BadImage, decode_whole
from pretrain.data.images.image_headers import image_format
from pretrain.data.images.sheet import NUM_CELLS, Cell, draw_sheet, thumbnail
from pretrain.data.packing.sources.tree import read_tree
from pretrain.data.reading.annotations import BadAnnotation, Boxes, name_of_class, read_classes
from pretrain.data.reading.footers import read_footer
from pretrain.data.reading.manifest import Manifest, find_shards, load_manifest
from pretrain.data.reading.numberings import declared_names, numbered_differently
from pretrain.data.reading.order import Segment
from pretrain.data.reading.shards import Rows, Shards

NUM_ROWS_LISTED = 20
# beside shards, by our commands
OWN_FILES = ("_import.json", "_quarantine.jsonl", "_files.jsonl", "_dropped.jsonl")

Result = TypeVar("Result")


def check(
    url: str,
    image_column: str = "image",
    max_rows: int | None = 1000,
    *,
    asked: Asked | None = None,
    sheet_url: str | None = None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Looks at a data set and returns what it found, ready for JSON.

    Classes are counted over all rows; images, captions, boxes and duplicates over the sample.

    Args:
        url: file, folder or glob.
        image_column: holds the encoded images.
        max_rows: rows to look at, spread evenly; None looks at all.
        asked: columns with annotations; None for those of the usual names.
        sheet_url: PNG file for a contact sheet.

    Raises:
        UserError: for everything that is wrong with whole files or columns, naming the file.
    """
    first = find_shards([url])[0]
    schema = read_footer(first).schema
    columns = AnnotationColumns.of(schema, asked or Asked(), first.url)
    manifest = load_manifest(url, image_column=image_column, columns=columns.names)
    num_sampled = manifest.num_rows if max_rows is None else min(max_rows, manifest.num_rows)
    row_ids = _spread_evenly(num_sampled, manifest.num_rows)
    sample = _Sample(
        Shards(manifest, image_column=image_column), row_ids, columns, with_sheet=sheet_url is not None
    )
    report = {
        "url": masked(url),
        "fingerprint": manifest.fingerprint,
        "files": len(manifest.files),
        "bytes": sum(file.size_bytes for file in manifest.files),
        "rows": manifest.num_rows,
        "image_bytes": int(manifest.bytes_of_group.sum()),
        "row_groups": describe_groups(manifest),
        "columns": {field.name: str(field.type) for field in schema},
        "passed_over": columns.passed_over,
        "notes": _notes(url, manifest, columns),
        "labels": {column.column: count_classes(manifest.files, column) for column in columns.classes},
    }
    with ProgressLine("looking at rows", num_sampled, shown=show_progress) as progress:
        sample.look(progress)
    if sheet_url is not None:
        storage.write_bytes(sheet_url, draw_sheet(sample.cells))
    return {**report, **sample.report()}


def _notes(url: str, manifest: Manifest, columns: AnnotationColumns) -> list[str]:
    """What to say of whole files and columns: files that are passed over, numbers of several classes."""
    notes = []
    if storage.is_folder(url):
        tree = read_tree(url)
        taken = {file.url for file in manifest.files}
        others = Counter(
            tree.left.get(path)
            or f"file of another kind ({posixpath.splitext(path)[1].lower() or 'no ending'})"
            for path, file in ((path, tree.files.get(path)) for path in (*tree.files, *tree.left))
            if (file is None or file.url not in taken) and posixpath.basename(path) not in OWN_FILES
        )
        notes += [f"passed over: {num} x {kind}" for kind, num in sorted(others.items())]
    for name in read_footer(manifest.files[0]).folder_columns:
        notes.append(f"column {name!r} is read from the names of the folders ({name}=...)")
    locations: list[tuple[str, ...]] = [(column.column,) for column in columns.classes]
    if columns.boxes is not None and columns.boxes.class_field is not None:
        locations.append((columns.boxes.column, columns.boxes.class_field))
    for location in locations:
        try:
            declared_names([manifest], *location)
        except UserError as error:
            notes.append(f"training will refuse this: {error}")
        if numbered_differently(manifest, *location):
            notes.append(
                f"files number the classes of {'.'.join(location)!r} differently; they are read by their "
                "names"
            )
    return notes


def _spread_evenly(num: int, among: int) -> np.ndarray:
    """int64 [num]: the middle of each of `num` equal stretches of 0..among-1."""
    return (np.arange(num, dtype=np.int64) * 2 + 1) * among // (2 * max(1, num))


@dataclass(frozen=True)
class _Look:
    """What one row's image is: its size (width, height) or why it is bad, its digest,
    its small image for the sheet.

    `has_few_bits`: it is a 16-bit grey one whose values use fewer bits, by which it is scaled.
    """

    form: str
    size: tuple[int, int] | None
    reason: str
    digest: bytes
    tile: Image.Image | None
    has_few_bits: bool = False


def _look_at(image: bytes | None, *, with_tile: bool = False) -> _Look:
    """Decodes one encoded image."""
    if image is None:
        return _Look("", None, "null", b"", None)
    digest = image_digest(image)
    try:
        decoded = decode_whole(image)
    except BadImage as error:
        return _Look("", None, str(error), digest, None)
    tile = thumbnail(np.asarray(decoded.image)) if with_tile else None
    return _Look(
        image_format(image) or "",
        decoded.image.size,
        "",
        digest,
        tile,
        has_few_bits=decoded.significant_bits > 0,
    )


class _Sample:
    """The rows that are looked at, and what was found."""

    def __init__(
        self, shards: Shards, row_ids: np.ndarray, columns: AnnotationColumns, *, with_sheet: bool
    ) -> None:
        self._shards, self._row_ids, self._columns = shards, row_ids, columns
        num_cells = min(NUM_CELLS, len(row_ids)) if with_sheet else 0
        self._on_sheet = set(row_ids[_spread_evenly(num_cells, len(row_ids))].tolist())
        self.cells: list[Cell] = []
        self._formats: Counter[str] = Counter()
        self._sizes_N2 = np.zeros((len(row_ids), 2), dtype=np.int32)  # width and height, 0 where bad
        self._digests_N2 = np.zeros((len(row_ids), DIGEST_BYTES // 8), dtype=np.uint64)
        self._bad_rows: list[dict[str, Any]] = []
        self._bad_annotations: list[dict[str, Any]] = []
        self._num_bad = self._num_bad_annotations = self._num_few_bits = 0
        self._captions = CaptionTally(columns.captions) if columns.captions is not None else None
        self._boxes = BoxTally(columns.boxes) if columns.boxes is not None else None

    def look(self, progress: ProgressLine) -> None:
        """Reads and counts all rows of the sample."""
        annotations = annotations_of(self._shards.manifest, self._row_ids, self._columns.names)
        index = 0
        with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="check") as pool:

            def look_at_row(image: bytes | None, row_id: int) -> _Look:
                return _look_at(image, with_tile=row_id in self._on_sheet)

            for piece in _pieces_with(self._shards, self._row_ids):
                for row_id, look in zip(
                    piece.row_ids, pool.map(look_at_row, piece.images, piece.row_ids), strict=True
                ):
                    self._add(index, row_id, look, next(annotations))
                    index += 1
                    progress.advance()

    def _add(self, index: int, row_id: int, look: _Look, annotations: dict[str, Any]) -> None:
        if look.digest:
            self._digests_N2[index] = np.frombuffer(look.digest, dtype=np.uint64)
        if look.size is None:
            self._num_bad += 1
            if len(self._bad_rows) < NUM_ROWS_LISTED:
                self._bad_rows.append({**self._location(row_id), "reason": look.reason})
        else:
            self._formats[look.form] += 1
            self._num_few_bits += look.has_few_bits
            self._sizes_N2[index] = look.size

        def tried(column: str, read: Callable[[], Result]) -> Result | None:
            try:
                return read()
            except BadAnnotation as error:
                self._num_bad_annotations += 1
                if len(self._bad_annotations) < NUM_ROWS_LISTED:
                    bad = {**self._location(row_id), "column": column, "reason": str(error)}
                    self._bad_annotations.append(bad)
                return None

        texts: list[str] = []
        boxes = None
        for column in self._columns.classes:
            values = tried(column.column, lambda: read_classes(annotations[column.column], column)) or []  # noqa: B023
            texts += map(name_of_class, values)
        if self._captions is not None:
            name, captions = self._captions.column.column, self._captions
            texts += tried(name, lambda: captions.add(annotations[name])) or []
        if self._boxes is not None:
            tally = self._boxes
            boxes = tried(
                tally.column.column, lambda: tally.add(annotations[tally.column.column], look.size)
            )
        if row_id in self._on_sheet:
            self.cells.append(self._cell(row_id, look, texts, boxes))

    def _cell(self, row_id: int, look: _Look, texts: list[str], boxes: Boxes | None) -> Cell:
        if look.size is None:
            return Cell(None, look.reason, f"row {row_id}")
        width, height = look.size
        drawn = []
        if boxes is not None and self._boxes is not None:
            fractions_N4 = boxes.xyxy_N4 / np.array([width, height, width, height], dtype=np.float32)
            for fraction, value in zip(fractions_N4.tolist(), boxes.classes, strict=True):
                drawn.append((tuple(fraction), "" if value is None else name_of_class(value)))
        return Cell(look.tile, ", ".join(texts), f"row {row_id}, {width} x {height}", drawn)

    def _location(self, row_id: int) -> dict[str, Any]:
        location = self._shards.location(row_id)
        return {"file": location.file, "row_group": location.row_group, "row": location.row}

    def report(self) -> dict[str, Any]:
        """All counts, ready for JSON."""
        good_N2 = self._sizes_N2[self._sizes_N2[:, 0] > 0]
        copies = copies_of(self._digests_N2)
        listed = [
            {
                **self._location(int(self._row_ids[copy])),
                "same_as": self._location(int(self._row_ids[original])),
            }
            for copy, original in copies[:NUM_ROWS_LISTED].tolist()
        ]
        return {
            "decoded": len(self._row_ids),
            "formats": dict(self._formats.most_common()),
            "width": spread(good_N2[:, 0]) if len(good_N2) else None,
            "height": spread(good_N2[:, 1]) if len(good_N2) else None,
            "few_bits": self._num_few_bits,
            "bad": self._num_bad,
            "bad_rows": self._bad_rows,
            "captions": self._captions.report() if self._captions is not None else None,
            "boxes": self._boxes.report() if self._boxes is not None else None,
            "bad_annotations": self._num_bad_annotations,
            "bad_annotation_rows": self._bad_annotations,
            "duplicates": len(copies),
            "duplicate_rows": listed,
        }


def copies_of(digests_N2: np.ndarray) -> np.ndarray:
    """int64 [C, 2]: each row whose digest came before, and where it came first; zeros are no digest."""
    order = np.lexsort((np.arange(len(digests_N2)), *digests_N2.T))
    sorted_N2 = digests_N2[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (sorted_N2[1:] != sorted_N2[:-1]).any(axis=1)
    firsts = order[is_first][np.cumsum(is_first) - 1]
    is_copy = ~is_first & sorted_N2.any(axis=1)
    copies = np.stack([order[is_copy], firsts[is_copy]], axis=1)
    return copies[np.argsort(copies[:, 0])]


def _pieces_with(shards: Shards, row_ids: np.ndarray) -> Iterator[Rows]:
    """The rows with these ascending ids, piece by piece; of each row group only what they span is read."""
    for group, rows, ids in by_group(shards.manifest, row_ids):
        wanted = set(ids.tolist())
        for piece in shards.read(Segment(group, int(rows[0]), int(rows[-1]) + 1)):
            chosen = [index for index, row_id in enumerate(piece.row_ids) if row_id in wanted]
            yield Rows(
                [piece.row_ids[i] for i in chosen], [0] * len(chosen), [piece.images[i] for i in chosen], {}
            )


def parse_rows(text: str) -> int | None:
    """The value of --rows: a number above 0, or `all` (None). Raises UserError."""
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--rows must be a whole number above 0 or 'all', not {text!r}")
    return int(text)
