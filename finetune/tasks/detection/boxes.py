"""Boxes of a data set as a detector can use them; what it cannot is left out, counted and listed.

A box is left out when it is not four finite numbers, has no area, or lies outside of its image. The image is
still trained on, and evaluated, with the boxes that are left; without any it is all background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from cluster.errors import UserError
from pretrain.data.images.decode import BadImage
from pretrain.data.images.geometry import BoxCheck
from pretrain.data.images.pixels import open_image
from pretrain.data.reading.annotation_columns import BoxColumn, BoxFormat, find_boxes_column
from pretrain.data.reading.annotations import (
    BadAnnotation,
    Boxes,
    ClassValue,
    name_of_class,
    read_boxes,
    values_of,
)
from pretrain.data.reading.columns import column_by_file
from pretrain.data.reading.footers import read_footer
from pretrain.data.reading.labels import ClassNames, in_order
from pretrain.data.reading.manifest import Manifest
from pretrain.data.reading.naming import named, names_in
from pretrain.data.reading.numberings import declared_names
from pretrain.data.reading.shards import Shards, read_in_sequence

UNREADABLE, FLAT, OUTSIDE = "not four finite numbers", "without area", "outside of the image"
UNKNOWN = "of a class that the model does not know"
FEW = 10  # boxes
MAX_LISTED = 200  # of the boxes that are left out
ONE_CLASS = "object"  # the class of boxes whose column names none


@dataclass(frozen=True, eq=False)
class Target:
    """The boxes of an image: float32 [N, 4], left, top, right and bottom in its pixels,
    and class ids int64 [N].
    """

    xyxy_N4: np.ndarray
    classes_N: np.ndarray


@dataclass
class LeftOut:
    """Boxes that cannot be used: how many for which reason, and where the first of them lie."""

    counts: Counter[str] = field(default_factory=Counter)
    locations: list[str] = field(default_factory=list)

    def add(self, reason: str, location: str) -> None:
        """Counts a box."""
        self.counts[reason] += 1
        if len(self.locations) < MAX_LISTED:
            self.locations.append(f"{location}: {reason}")

    def merge(self, other: LeftOut) -> None:
        """Counts all of another's."""
        self.counts.update(other.counts)
        self.locations = (self.locations + other.locations)[:MAX_LISTED]

    def as_json(self) -> dict[str, Any]:
        """For result.json."""
        return {"counts": dict(sorted(self.counts.items())), "places": self.locations}

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.counts.items()))


def boxes_column_of(manifest: Manifest, column: str, box_format: str) -> BoxColumn:
    """How boxes lie in the column. Raises UserError when they do not, or differ between data sets."""
    firsts = np.unique(manifest.source_of_group, return_index=True)[1]
    files = [manifest.files[int(manifest.file_of_group[group])] for group in firsts]
    found = [
        find_boxes_column(read_footer(file).schema, column, file.url, cast(BoxFormat, box_format))
        for file in files
    ]
    for file, other in zip(files, found, strict=True):
        if other != found[0]:
            raise UserError(
                f"column {column!r} of {file.url} has other fields than that of {files[0].url}; data sets "
                "that are read together need the same"
            )
    return found[0]


def usable(value: Any, column: BoxColumn) -> tuple[Boxes, list[tuple[int, str]]]:
    """The boxes of a row that are four finite numbers with an area, and (index, reason) of the others."""
    boxes, numbers, bad = readable(value, column)
    flat_N = boxes.degenerate()
    if flat_N.any():
        bad += [(int(number), FLAT) for number in numbers[flat_N]]
        boxes = Boxes(
            boxes.xyxy_N4[~flat_N], [c for c, flat in zip(boxes.classes, flat_N, strict=True) if not flat]
        )
    return boxes, bad


def readable(value: Any, column: BoxColumn) -> tuple[Boxes, np.ndarray, list[tuple[int, str]]]:
    """A row's boxes of four finite numbers, the number int64 of each, and (index, reason) of the others."""
    try:
        boxes = read_boxes(value, column)
        return boxes, np.arange(len(boxes)), []
    except BadAnnotation:
        boxes, indices, bad = _one_by_one(value, column)
        return boxes, np.array(indices, dtype=int), bad


def _one_by_one(value: Any, column: BoxColumn) -> tuple[Boxes, list[int], list[tuple[int, str]]]:
    """What can be read of a row in which something cannot: one bad box does not cost its neighbours."""
    entries = list(_entries(value, column))
    good, bad = [], []
    for index, entry in enumerate(entries):
        try:
            good.append((index, read_boxes([entry], column)))
        except BadAnnotation:
            bad.append((index, UNREADABLE))
    if not entries:
        bad.append((0, UNREADABLE))
    xyxy_N4 = np.concatenate([np.zeros((0, 4), np.float32), *(boxes.xyxy_N4 for _, boxes in good)])
    return Boxes(xyxy_N4, [boxes.classes[0] for _, boxes in good]), [index for index, _ in good], bad


def _entries(value: Any, column: BoxColumn) -> Iterator[Any]:
    if isinstance(value, list):
        yield from value
        return
    fields = [name for name in (column.box_field, column.class_field) if name is not None]
    lists = [value.get(name) if isinstance(value, dict) else None for name in fields]
    if (
        all(isinstance(found, list) for found in lists)
        and len({len(found) for found in lists if found}) == 1
    ):
        yield from (dict(zip(fields, entry, strict=True)) for entry in zip(*lists, strict=True))


def inside(xyxy_N4: np.ndarray, width: float, height: float) -> np.ndarray:
    """Boxes cut at the edges of an image; what lies outside of it is left without area."""
    return np.clip(xyxy_N4, 0, np.array([width, height, width, height], np.float32))


def flat(xyxy_N4: np.ndarray) -> np.ndarray:
    """bool [N]: without area."""
    return (xyxy_N4[:, 2] <= xyxy_N4[:, 0]) | (xyxy_N4[:, 3] <= xyxy_N4[:, 1])


class TargetReader:
    """Makes targets of a column's values.

    Args:
        column: how boxes lie in it.
        classes: of the model.
    """

    def __init__(self, column: BoxColumn, classes: ClassNames) -> None:
        self.column, self.classes = column, classes

    def read(self, value: Any, *, width: float, height: float, location: str = "") -> tuple[Target, LeftOut]:
        """The boxes of an image of so many pixels, cut at its edges; those of classes that the model does
        not know are left out as well."""
        boxes, bad = usable(value, self.column)
        known_N = self.classes.known(boxes.classes)
        left_out = LeftOut()
        for index, reason in bad:
            left_out.add(reason, f"{location}, box {index}")
        xyxy_N4 = inside(boxes.xyxy_N4, width, height)
        outside_N = flat(xyxy_N4)
        for index in np.flatnonzero(~known_N).tolist():
            left_out.add(UNKNOWN, f"{location}, {name_of_class(boxes.classes[index])!r}")
        for index in np.flatnonzero(outside_N & known_N).tolist():
            numbers = ", ".join(f"{number:g}" for number in boxes.xyxy_N4[index])
            left_out.add(OUTSIDE, f"{location}, box at {numbers} of an image of {width:g} x {height:g}")
        keep_N = known_N & ~outside_N
        classes_N = self.ids([value for value, kept in zip(boxes.classes, keep_N, strict=True) if kept])
        return Target(xyxy_N4[keep_N], classes_N), left_out

    def ids(self, classes: Sequence[ClassValue | None]) -> np.ndarray:
        """Class ids int64."""
        return self.classes.ids(classes)


@dataclass(frozen=True, eq=False)
class Census:
    """What the boxes column of a data set says; images are not opened for it."""

    column: BoxColumn
    manifest: Manifest
    num_rows: int
    num_without: int
    boxes_of_class: Counter[ClassValue | None]
    left_out: LeftOut

    @property
    def num_boxes(self) -> int:
        """Boxes that can be used, as far as the column tells."""
        return sum(self.boxes_of_class.values())


def take_census(shards: Shards, column: BoxColumn) -> Census:
    """Reads the boxes column of a whole data set, no other. Raises UserError when no box can be used."""
    row_id = num_without = 0
    counts: Counter[ClassValue | None] = Counter()
    left_out = LeftOut()
    files = {file.url: file for file in shards.manifest.files}
    for url, values in column_by_file(shards.manifest, column.column):
        names = names_in(read_footer(files[url]).schema, column.column)
        for chunk in values.chunks:
            for value in values_of(chunk):
                boxes, bad = usable(named(value, names), column)
                for index, reason in bad:
                    left_out.add(reason, f"{shards.location(row_id)}, box {index}")
                counts.update(boxes.classes)
                num_without += not len(boxes)
                row_id += 1
    if not counts:
        reasons = f" (left out: {left_out})" if left_out.counts else ""
        raise UserError(
            f"column {column.column!r} of {shards.manifest.files[0].url} holds no box that can be "
            f"used{reasons}; detection needs images with boxes, and reads them as "
            f"detection.box_format={column.box_format}"
        )
    return Census(column, shards.manifest, row_id, num_without, counts, left_out)


def classes_of(train: Census, validation: Census) -> ClassNames:
    """The classes of the training data in a fixed order;
    of those that its files declare all, as `read_class_names_of` does.

    Raises UserError for validation classes that training never shows,
    and where numbers have names in some files only.
    """
    found, validated = set(train.boxes_of_class), set(validation.boxes_of_class)
    field = train.column.class_field
    manifests = [train.manifest, validation.manifest]
    declared = {} if field is None else declared_names(manifests, train.column.column, field)
    if never := validated - found:
        names, known = (sorted(map(name_of_class, values)) for values in (never, found))
        raise UserError(
            "the validation data has boxes of classes that the training data never shows: "
            f"{', '.join(names)}; training knows {', '.join(known)}"
        )
    if found == {None}:
        return ClassNames((None,), [ONE_CLASS])
    return in_order(found, declared.get(train.manifest, ()))


@dataclass(frozen=True, eq=False)
class Shapes:
    """Boxes of a sample of images as these show them.

    Attributes:
        fractions_N2: width and height as fractions of the image's longer side, cut at its edges, float64.
        outside: boxes that lie outside of their images.
        num: boxes that were looked at.
        complaint: what is wrong with all of them together, and the setting that mends it;
            None where nothing is.
    """

    fractions_N2: np.ndarray
    outside: LeftOut
    num: int
    complaint: str | None


def look_at_shapes(shards: Shards, column: BoxColumn, num_rows: int, *, channels: int) -> Shapes:
    """Looks at the boxes of at least `num_rows` rows, spread over the data set;
    of their images only headers are decoded.

    The rules of what the numbers mean together are those of `pretrain.data check`.
    """
    shapes, outside, box_check = [np.zeros((0, 2))], LeftOut(), BoxCheck(column.box_format)
    sample = Shards(
        shards.manifest.sample(num_rows), image_column=shards.image_column, columns=[column.column]
    )
    for rows in read_in_sequence(sample):
        for row_id, data, value in zip(rows.row_ids, rows.images, rows.columns[column.column], strict=True):
            try:
                image = open_image(data, channels=channels) if data is not None else None
            except BadImage:
                image = None  # its row is counted as a bad one when its turn comes
            if image is None:
                continue
            size = image.width, image.height
            boxes, _, _ = readable(value, column)
            box_check.add(boxes.xyxy_N4, size)
            with_area_N4 = boxes.xyxy_N4[~boxes.degenerate()]
            cut_N4 = inside(with_area_N4, *size)
            outside_N = flat(cut_N4)
            for _ in range(int(outside_N.sum())):
                outside.add(OUTSIDE, str(sample.location(row_id)))
            shapes.append((cut_N4[:, 2:] - cut_N4[:, :2])[~outside_N] / max(size))
    what = f"the boxes in column {column.column!r} of {shards.manifest.files[0].url}"
    fractions_N2 = np.concatenate(shapes).astype(np.float64)
    return Shapes(
        fractions_N2, outside, box_check.num_boxes, box_check.complaint(what, "detection.box_format")
    )


def check_boxes(census: Census, shapes: Shapes, url: str, *, max_left_out: float) -> None:
    """Raises UserError where the boxes of a data set mean something else than they are read as, or more than
    a fraction of them (`data.max_bad_fraction`) cannot be used."""
    if shapes.complaint is not None:
        raise UserError(shapes.complaint)
    num_all = census.num_boxes + sum(census.left_out.counts.values())
    of_column, of_images = sum(census.left_out.counts.values()), sum(shapes.outside.counts.values())
    for num, among, told, location in (
        (of_column, num_all, str(census.left_out), census.left_out.locations[:1]),
        (of_images, shapes.num, f"{shapes.outside}, of those looked at", shapes.outside.locations[:1]),
    ):
        # a few bad ones in a small data set are no sign of anything
        if num > max_left_out * among and (num >= FEW or 2 * num > among):
            raise UserError(
                f"{num:,} of {among:,} boxes in column {census.column.column!r} of {url} cannot be used "
                f"({told}; first: {''.join(location)}), more than data.max_bad_fraction={max_left_out:g}; "
                f"they are read as detection.box_format={census.column.box_format}, in pixels"
            )
