"""Boxes, captions and class values as Parquet columns hold them, whatever program wrote the file.

A column is looked at once, in the schema (`find_*`), and then read row by row (`read_*`). The values are
those of `to_pylist`, with names in place of numbers that stand for names (`pretrain.data.reading.naming`);
what a row may not hold raises `BadAnnotation`, as a bad image raises `BadImage`.

Boxes lie in a struct of lists, as Hugging Face `datasets` writes `objects`, or in a list of structs,
as in COCO:

    struct<bbox: list<list<float>>, category: list<int64>>          {"bbox": [[x, y, w, h], ...], "category":
        [3, ...]}
    list<struct<bbox: list<float>, category: string>>               [{"bbox": [x, y, w, h], "category":
        "cat"}, ...]
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from cluster.errors import UserError, nearest

# sub-fields of an objects column, the usual ones first
BOX_FIELDS = ("bbox", "bboxes", "box", "boxes")
CLASS_FIELDS = (
    *("category", "categories", "label", "labels", "category_id", "category_ids"),
    *("class", "classes", "class_id", "name", "names"),
)

CROWD_FIELDS = ("iscrowd", "is_crowd")  # marks regions of many objects, which are no single ones

# columns that are taken when none is named, the usual ones first
BOXES_COLUMNS, CAPTIONS_COLUMNS = ("objects",), ("captions", "caption")

BoxFormat = Literal["xywh", "xyxy"]
ClassValue = int | str


class BadAnnotation(Exception):
    """An annotation that cannot be used; the text is a short reason such as
    `bbox[2] is not four finite numbers`.
    """


@dataclass(frozen=True)
class ClassColumn:
    """A column with one class a row, or with a list of them."""

    column: str
    is_list: bool


@dataclass(frozen=True)
class BoxColumn:
    """A column with the objects of an image.

    Attributes:
        column: its name.
        box_field, class_field: the sub-fields with boxes and classes; objects without classes have none.
        box_format: what four numbers mean: (x, y, width, height), or two corners (x1, y1, x2, y2).
        crowd_field: the sub-field that marks crowd regions, which are left out; None without one.
    """

    column: str
    box_field: str
    class_field: str | None
    box_format: BoxFormat = "xywh"
    crowd_field: str | None = None


@dataclass(frozen=True)
class CaptionColumn:
    """A column with a text, or with a list of texts."""

    column: str


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
        """bool [N]: reaches more than `tolerance` pixels beyond an image of this size;
        rounding costs many files less.
        """
        ends_4 = np.array([width, height, width, height]) + tolerance
        return np.any((self.xyxy_N4 < -tolerance) | (self.xyxy_N4 > ends_4), axis=1)


def find_class_column(schema: pa.Schema, column: str, url: str) -> ClassColumn:
    """Raises UserError when the column is missing or holds neither text nor whole numbers,
    nor lists of one of them.
    """
    kind = _type_of(schema, column, url)
    inner = kind.value_type if is_list_type(kind) else kind
    if not is_class_type(inner):
        raise UserError(
            f"{url}: column {column!r} is {kind}; classes must be text or whole numbers, or lists of these"
        )
    return ClassColumn(column, is_list_type(kind))


def find_boxes_column(
    schema: pa.Schema, column: str | None = None, url: str = "the data", box_format: BoxFormat = "xywh"
) -> BoxColumn:
    """The named column; without a name `objects`, or else the first that holds boxes.
    `url` is named in errors.

    Raises UserError when the column is missing, has no boxes that we know how to read,
    or classes of another type.
    """
    if column is None:
        column = next((name for name in BOXES_COLUMNS if name in schema.names), None)
    if column is None:
        for name in dict.fromkeys(schema.names):
            with suppress(UserError):
                return find_boxes_column(schema, name, url, box_format)
        raise UserError(f"{url} has no column with boxes (columns there: {', '.join(schema.names)})")
    kind = _type_of(schema, column, url)
    of_structs = is_list_type(kind)
    struct = kind.value_type if of_structs else kind
    if not pa.types.is_struct(struct):
        raise UserError(
            f"{url}: column {column!r} is {kind}; objects must be struct<bbox: list<list<float>>, category: "
            "list<...>> or list<struct<bbox: list<float>, category: ...>>"
        )
    fields = [field.name for field in struct]
    if repeated := sorted({name for name in fields if fields.count(name) > 1}):
        raise UserError(f"{url}: column {column!r} has two fields {repeated[0]!r}; rename all but one")
    box_field = _first_of(BOX_FIELDS, fields)
    if box_field is None:
        raise UserError(
            f"{url}: column {column!r} has no field for boxes (fields there: {', '.join(fields)}; "
            f"known: {', '.join(BOX_FIELDS)})"
        )
    class_field = _first_of(CLASS_FIELDS, fields)
    box_type, shape = struct.field(box_field).type, "list<float>" if of_structs else "list<list<float>>"
    one_box = box_type if of_structs else _inside(box_type)
    if one_box is None or not _is_number(_inside(one_box)):
        raise UserError(
            f"{url}: {column}.{box_field} is {box_type}; boxes must be {shape}, four numbers a box"
        )
    if class_field is not None:
        class_type, shape = struct.field(class_field).type, "" if of_structs else "lists of "
        if not is_class_type(class_type if of_structs else _inside(class_type)):
            raise UserError(
                f"{url}: {column}.{class_field} is {class_type}; classes must be {shape}text or whole "
                "numbers"
            )
    crowd_field = _first_of(CROWD_FIELDS, fields)
    if crowd_field is not None:
        crowd_type = struct.field(crowd_field).type
        flag = crowd_type if of_structs else _inside(crowd_type)
        if flag is None or not (pa.types.is_integer(flag) or pa.types.is_boolean(flag)):
            crowd_field = None
    return BoxColumn(column, box_field, class_field, box_format, crowd_field)


def find_captions_column(
    schema: pa.Schema, column: str | None = None, url: str = "the data"
) -> CaptionColumn:
    """The named column; without a name `captions` or `caption`, for other columns of text may be anything.

    Raises UserError when the column is missing or holds neither text nor lists of text.
    """
    if column is None:
        column = next((name for name in CAPTIONS_COLUMNS if name in schema.names), CAPTIONS_COLUMNS[0])
    kind = _type_of(schema, column, url)
    if not _is_text(_decoded(kind.value_type if is_list_type(kind) else kind)):
        raise UserError(f"{url}: column {column!r} is {kind}; captions must be string or list<string>")
    return CaptionColumn(column)


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
    """The captions of a row without those that are null or blank; NFC, no blanks around them.
    Raises BadAnnotation.
    """
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
    """The class values of a row as they stand in the column, in order; none where it is null.
    Raises BadAnnotation.
    """
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


def class_type_at(schema: pa.Schema, *path: str) -> pa.DataType | None:
    """The type of classes at a location such as ("objects", "category"), without lists around them;
    None where nothing is.
    """
    kind: pa.DataType | None = schema.field(path[0]).type if path[0] in schema.names else None
    for name in path[1:]:
        while kind is not None and is_list_type(kind):
            kind = kind.value_type
        if kind is None or not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    while kind is not None and is_list_type(kind):
        kind = kind.value_type
    return None if kind is None else _decoded(kind)


def is_class_type(kind: pa.DataType | None) -> bool:
    """Whether values of this type can be classes: text or whole numbers, dictionary-encoded or not."""
    return kind is not None and (_is_text(_decoded(kind)) or pa.types.is_integer(_decoded(kind)))


def _type_of(schema: pa.Schema, column: str, url: str) -> pa.DataType:
    names = schema.names
    if column not in names:
        raise UserError(
            f"{url} has no column {column!r}{nearest(column, names)} (columns there: {', '.join(names)})"
        )
    if names.count(column) > 1:
        raise UserError(f"{url} has {names.count(column)} columns named {column!r}; rename all but one")
    return schema.field(column).type


def _first_of(known: Sequence[str], fields: Sequence[str]) -> str | None:
    """The field with one of the known names, whatever its case; of several the one that is known first."""
    return next((field for name in known for field in fields if field.lower() == name), None)


def is_list_type(kind: pa.DataType) -> bool:
    """Whether values of this type are lists, however Arrow lays them out."""
    views = pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
    return bool(
        views or pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _inside(kind: pa.DataType) -> pa.DataType | None:
    return kind.value_type if is_list_type(kind) else None


def _decoded(kind: pa.DataType) -> pa.DataType:
    """The type of the values, which a dictionary-encoded column has one by one."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType | None) -> bool:
    return kind is not None and bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


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
