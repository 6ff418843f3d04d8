"""Boxes, captions and class values as Parquet columns hold them, whatever program wrote the file.

A column is found in the schema (`pretrain.data.reading.annotation_columns`) and read row by row. Values are
those of `to_pylist`, with names in place of numbers that stand for names (`pretrain.data.reading.naming`);
what a row may not hold raises `BadAnnotation`, as a bad image raises `BadImage`.

Boxes lie in a struct of lists, as Hugging Face `datasets` writes `objects`, or in a list of structs,
as in COCO:

    struct<bbox: list<list<float>>, category: list<int64>>   {"bbox": [[x, y, w, h]], "category": [3]}
    list<struct<bbox: list<float>, category: string>>        [{"bbox": [x, y, w, h], "category": "cat"}]
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pretrain.data.reading.annotation_columns import BoxColumn, ClassColumn

ClassValue = int | str


class BadAnnotation(Exception):
    """An annotation that cannot be used; the text says why: `bbox[2] is not four finite numbers`."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """The objects of one image.

    Attributes:
        xyxy_N4: float32, pixels of the upright image as far as the file is right: left, top, right, bottom.
            Finite, but not clipped, and not always left of right.
        classes: N values as they stand in the column; all None where the column has no classes.
    """

    xyxy_N4: np.ndarray
    classes: list[ClassValue | None]

    def __len__(self) -> int:
        return len(self.classes)

    def degenerate(self) -> np.ndarray:
        """bool [N]: without any area."""
        left, top, right, bottom = self.xyxy_N4.T
        return (right <= left) | (bottom <= top)

    def outside(self, width: int, height: int, *, tolerance: float = 1.0) -> np.ndarray:
        """bool [N]: more than `tolerance` pixels beyond an image of this size; rounding costs less."""
        ends_4 = np.array([width, height, width, height]) + tolerance
        return np.any((self.xyxy_N4 < -tolerance) | (self.xyxy_N4 > ends_4), axis=1)


def read_boxes(value: Any, column: BoxColumn) -> Boxes:
    """The objects of a row; none where it is null. Raises BadAnnotation."""
    if value is None:
        boxes, classes = [], []
    elif isinstance(value, dict):
        boxes, classes = (_list_at(value, field) for field in (column.box_field, column.class_field))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            if not isinstance(entry, dict):
                raise BadAnnotation(f"{column.column}[{index}] is null")
        boxes, classes = (
            [entry.get(field) for entry in value] for field in (column.box_field, column.class_field)
        )
    else:
        raise BadAnnotation(_unreadable(value))
    if column.class_field is None:
        classes = [None] * len(boxes)
    if len(boxes) != len(classes):
        raise BadAnnotation(f"{len(boxes)} boxes but {len(classes)} classes")
    crowds = crowds_in(value, column)
    if any(crowds) and len(crowds) == len(boxes):
        boxes, classes = (
            [entry for entry, is_crowd in zip(entries, crowds, strict=True) if not is_crowd]
            for entries in (boxes, classes)
        )
    if column.class_field is not None:
        _check_classes(classes, column.class_field)
    corners_N4 = _numbers_N4(boxes, column.box_field)
    with np.errstate(over="ignore", invalid="ignore"):  # found below
        if column.box_format == "xywh":
            corners_N4[:, 2:] += corners_N4[:, :2]
        xyxy_N4 = corners_N4.astype(np.float32)
    _check_finite(xyxy_N4, column.box_field)
    return Boxes(xyxy_N4, classes)


def crowds_in(value: Any, column: BoxColumn) -> list[bool]:
    """Which objects of a row are crowd regions; empty where nothing marks them."""
    field = column.crowd_field
    if field is None or not value:
        return []
    flags = (
        value.get(field)
        if isinstance(value, dict)
        else [entry.get(field) for entry in value if isinstance(entry, dict)]
    )
    return [bool(flag) for flag in flags] if isinstance(flags, list) else []


def read_captions(value: Any) -> list[str]:
    """The captions of a row, none null or blank; NFC, no blanks around them. Raises BadAnnotation."""
    texts = [] if value is None else value if isinstance(value, list) else [value]
    captions = []
    for text in texts:
        if text is None:
            continue
        if not isinstance(text, str):
            raise BadAnnotation(_unreadable(text))
        caption = unicodedata.normalize("NFC", text).strip()
        if caption:
            captions.append(caption)
    return captions


def read_classes(value: Any, column: ClassColumn) -> list[ClassValue]:
    """A row's class values as they stand in the column; none where it is null. Raises BadAnnotation."""
    if value is None:
        return []
    classes = value if isinstance(value, list) else [value]
    _check_classes(classes, column.column)
    return classes


def name_of_class(value: ClassValue | None) -> str:
    """A class value's text."""
    return "(null)" if value is None else str(value)


def values_of(array: pa.Array) -> list[Any]:
    """`array.to_pylist()`, but a row with text that is not UTF-8 comes as
    the bytes b'' and not as an exception.

    Parquet files may hold such text, and pyarrow does not look before it makes a str of it.
    `read_*` refuse it.
    """
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        return [value_of(scalar) for scalar in array]


def value_of(scalar: pa.Scalar) -> Any:
    """One of the `values_of` an array."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return b""


def _list_at(objects: dict[str, Any], field: str | None) -> list[Any]:
    values = objects.get(field) if field is not None else None
    if values is not None and not isinstance(values, list):
        raise BadAnnotation(f"{field} is not a list")
    return values or []


def _numbers_N4(boxes: list[Any], field: str) -> np.ndarray:
    if not boxes:
        return np.zeros((0, 4))
    try:
        numbers_N4 = np.array(boxes, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):  # a null, or boxes of several lengths
        numbers_N4 = np.zeros(0)
    if numbers_N4.shape != (len(boxes), 4):
        wrong = next(
            (i for i, box in enumerate(boxes) if not isinstance(box, list) or len(box) != 4 or None in box),
            0,
        )
        raise BadAnnotation(f"{field}[{wrong}] is not four finite numbers")
    _check_finite(numbers_N4, field)
    return numbers_N4


def _check_finite(numbers_N4: np.ndarray, field: str) -> None:
    finite_N = np.isfinite(numbers_N4).all(axis=1)
    if not finite_N.all():
        raise BadAnnotation(f"{field}[{int(np.argmin(finite_N))}] is not four finite numbers")


def _check_classes(classes: list[Any], field: str) -> None:
    for index, value in enumerate(classes):
        if not isinstance(value, int | str) or isinstance(value, bool):
            what = "null" if value is None else _unreadable(value)
            raise BadAnnotation(f"{field}[{index}] is {what}")


def _unreadable(value: Any) -> str:
    return (
        "text that is not UTF-8"
        if isinstance(value, bytes)
        else f"a {type(value).__name__}, which is not expected"
    )
