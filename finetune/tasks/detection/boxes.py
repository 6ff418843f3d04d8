"""Boxes of a data set as a detector can use them; what it cannot is left out, counted and listed.

A box is left out when it is not four finite numbers, has no area, or lies outside of its picture. The picture is still
trained on, and judged, with the boxes that are left; without any it is all background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from cluster.errors import UserError
from pretrain.data.annotations import (
    BadAnnotation,
    BoxColumn,
    Boxes,
    BoxFormat,
    ClassValue,
    find_boxes_column,
    name_of_class,
    read_boxes,
    values_of,
)
from pretrain.data.columns import column_by_file
from pretrain.data.decode import BadImage
from pretrain.data.footers import read_footer
from pretrain.data.geometry import BoxJudge
from pretrain.data.labels import ClassNames
from pretrain.data.manifest import Manifest
from pretrain.data.naming import declared_names
from pretrain.data.pixels import open_picture
from pretrain.data.shards import Shards, read_in_sequence

UNREADABLE, FLAT, OUTSIDE = "not four finite numbers", "without area", "outside of the image"
MOST_LISTED = 200  # of the boxes that are left out
ONE_CLASS = "object"  # the class of boxes whose column names none


@dataclass(frozen=True, eq=False)
class Target:
    """The boxes of a picture: float32 [N, 4], left, top, right and bottom in its pixels, and class ids int64 [N]."""

    xyxy_N4: np.ndarray
    classes_N: np.ndarray


@dataclass
class LeftOut:
    """Boxes that cannot be used: how many for which reason, and where the first of them lie."""

    counts: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)

    def add(self, reason: str, place: str) -> None:
        """Counts a box."""
        self.counts[reason] += 1
        if len(self.places) < MOST_LISTED:
            self.places.append(f"{place}: {reason}")

    def merge(self, other: LeftOut) -> None:
        """Counts all of another's."""
        self.counts.update(other.counts)
        self.places = (self.places + other.places)[:MOST_LISTED]

    def as_json(self) -> dict[str, Any]:
        """For result.json."""
        return {"counts": dict(sorted(self.counts.items())), "places": self.places}

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.counts.items()))


def boxes_column_of(manifest: Manifest, column: str, box_format: str) -> BoxColumn:
    """How boxes lie in the column. Raises UserError when they do not, or differently in several data sets."""
    firsts = np.unique(manifest.source_of_group, return_index=True)[1]
    files = [manifest.files[int(manifest.file_of_group[group])] for group in firsts]
    found = [
        find_boxes_column(read_footer(file).schema, column, file.url, cast(BoxFormat, box_format)) for file in files
    ]
    for file, other in zip(files, found, strict=True):
        if other != found[0]:
            raise UserError(
                f"column {column!r} of {file.url} has other fields or class names than that of {files[0].url}; data sets "
                "that are read together need the same"
            )
    if found[0].class_field is not None:
        declared_names([manifest], column, found[0].class_field)  # of every file: numbers must mean the same in all
    return found[0]


def usable(value: Any, column: BoxColumn) -> tuple[Boxes, list[tuple[int, str]]]:
    """The boxes of a row that are four finite numbers with an area, and (index, reason) of the others."""
    try:
        boxes, indices = read_boxes(value, column), None
        bad: list[tuple[int, str]] = []
    except BadAnnotation:
        boxes, indices, bad = _one_by_one(value, column)
    numbers = np.arange(len(boxes)) if indices is None else np.array(indices, dtype=int)
    flat_N = boxes.degenerate()
    if flat_N.any():
        bad += [(int(number), FLAT) for number in numbers[flat_N]]
        boxes = Boxes(boxes.xyxy_N4[~flat_N], [c for c, flat in zip(boxes.classes, flat_N, strict=True) if not flat])
    return boxes, bad


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
    if all(isinstance(found, list) for found in lists) and len({len(found) for found in lists if found}) == 1:
        yield from (dict(zip(fields, entry, strict=True)) for entry in zip(*lists, strict=True))


def inside(xyxy_N4: np.ndarray, width: float, height: float) -> np.ndarray:
    """Boxes cut at the edges of a picture; what lies outside of it is left without area."""
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

    def read(self, value: Any, *, width: float, height: float, place: str = "") -> tuple[Target, LeftOut]:
        """The boxes of a picture of so many pixels, cut at its edges. Raises UserError for a class the model does not know."""
        boxes, bad = usable(value, self.column)
        left_out = LeftOut()
        for index, reason in bad:
            left_out.add(reason, f"{place}, box {index}")
        xyxy_N4 = inside(boxes.xyxy_N4, width, height)
        outside_N = flat(xyxy_N4)
        for index in np.flatnonzero(outside_N).tolist():
            numbers = ", ".join(f"{number:g}" for number in boxes.xyxy_N4[index])
            left_out.add(OUTSIDE, f"{place}, box at {numbers} of an image of {width:g} x {height:g}")
        classes_N = self.ids(boxes.classes)
        return Target(xyxy_N4[~outside_N], classes_N[~outside_N]), left_out

    def ids(self, classes: Sequence[ClassValue | None]) -> np.ndarray:
        """Class ids int64."""
        return self.classes.ids(classes)


@dataclass(frozen=True, eq=False)
class Census:
    """What the boxes column of a data set says; pictures are not opened for it."""

    column: BoxColumn
    num_rows: int
    num_without: int
    boxes_of_class: Counter[ClassValue | None]
    left_out: LeftOut

    @property
    def num_boxes(self) -> int:
        """Boxes that can be used, as far as the column tells."""
        return sum(self.boxes_of_class.values())


def take_census(shards: Shards, column: BoxColumn) -> Census:
    """Reads the boxes column of a whole data set, and nothing else of it. Raises UserError when no box can be used."""
    row_id = num_without = 0
    counts: Counter[ClassValue | None] = Counter()
    left_out = LeftOut()
    for _, values in column_by_file(shards.manifest, column.column):
        for chunk in values.chunks:
            for value in values_of(chunk):
                boxes, bad = usable(value, column)
                for index, reason in bad:
                    left_out.add(reason, f"{shards.place(row_id)}, box {index}")
                counts.update(boxes.classes)
                num_without += not len(boxes)
                row_id += 1
    if not counts:
        reasons = f" (left out: {left_out})" if left_out.counts else ""
        raise UserError(
            f"column {column.column!r} of {shards.manifest.files[0].url} holds no box that can be used{reasons}; detection "
            "needs images with boxes"
        )
    return Census(column, row_id, num_without, counts, left_out)


def classes_of(train: Census, validation: Census) -> ClassNames:
    """The classes of the training data in a fixed order, with the names that the files declare.

    Raises UserError for validation classes that training never shows.
    """
    found, judged = set(train.boxes_of_class), set(validation.boxes_of_class)
    declared, theirs = train.column.names, validation.column.names
    if declared != theirs and all(isinstance(value, int) for value in found | judged):
        raise UserError(
            "the validation data numbers its classes otherwise than the training data "
            f"({', '.join(theirs or ('no names',))} against "
            f"{', '.join(declared or ('no names',))}), so the same numbers would mean other classes; give them in one numbering"
        )
    if never := judged - found:
        names, known = (sorted(name_of_class(value, declared) for value in values) for values in (never, found))
        raise UserError(
            f"the validation data has boxes of classes that the training data never shows: {', '.join(names)}; training "
            f"knows {', '.join(known)}"
        )
    if found == {None}:
        return ClassNames((None,), [ONE_CLASS])
    values = tuple(sorted(found, key=lambda value: (str(type(value)), value)))
    if declared is not None and all(isinstance(value, int) and 0 <= value < len(declared) for value in values):
        # all declared classes, so that a model keeps the data set's numbering
        return ClassNames(tuple(range(len(declared))), list(declared))
    return ClassNames(values, [str(value) for value in values])


def look_at_shapes(shards: Shards, column: BoxColumn, num_rows: int, *, channels: int) -> tuple[np.ndarray, LeftOut]:
    """Width and height of boxes as shares of their picture's longer side, float64 [N, 2], and boxes outside of pictures.

    Of at least `num_rows` rows, spread over the data set; of their pictures only the headers are decoded. Raises
    UserError where
    nearly all boxes are shares of the sides, or corners read as sizes.
    """
    shapes, outside, judge = [np.zeros((0, 2))], LeftOut(), BoxJudge(column.box_format)
    sample = Shards(shards.manifest.sample(num_rows), image_column=shards.image_column, columns=[column.column])
    for rows in read_in_sequence(sample):
        for row_id, data, value in zip(rows.row_ids, rows.images, rows.columns[column.column], strict=True):
            try:
                picture = open_picture(data, channels=channels) if data is not None else None
            except BadImage:
                picture = None  # its row is counted as a bad one when its turn comes
            if picture is None:
                continue
            boxes, _ = usable(value, column)
            judge.add(boxes.xyxy_N4, (picture.width, picture.height))
            cut_N4 = inside(boxes.xyxy_N4, picture.width, picture.height)
            outside_N = flat(cut_N4)
            for _ in range(int(outside_N.sum())):
                outside.add(OUTSIDE, str(sample.place(row_id)))
            shapes.append((cut_N4[:, 2:] - cut_N4[:, :2])[~outside_N] / max(picture.width, picture.height))
    what = f"the boxes in column {column.column!r} of {shards.manifest.files[0].url}"
    if (complaint := judge.complaint(what, "detection.box_format")) is not None:
        raise UserError(complaint)
    return np.concatenate(shapes).astype(np.float64), outside
