"""Columns of boxes, captions and classes, found in the schema of a file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

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


def find_class_column(schema: pa.Schema, column: str, url: str) -> ClassColumn:
    """Raises UserError when the column is missing or holds no text or whole numbers, nor lists of these."""
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


def class_type_at(schema: pa.Schema, *path: str) -> pa.DataType | None:
    """The type of classes at, say, ("objects", "category"), without lists around it; None for nothing."""
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
