"""Boxes in the columns of tables, one a row: TensorFlow's and Roboflow's CSV, and Open Images'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.data.packing.sources.image_record import Objects
from pretrain.data.packing.sources.records import as_sizes, numbers
from pretrain.data.packing.sources.rows import Rows
from pretrain.data.packing.sources.texts import is_nothing, label_of
from pretrain.data.packing.sources.tree import Tree

CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
    ("xtl", "ytl", "xbr", "ybr"),
)
SIZES = (
    ("x", "y", "w", "h"),
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"),
    ("left", "top", "box_width", "box_height"),
)
ONE_COLUMN = ("bbox", "box")  # a text such as [10, 20, 30, 40]
CLASSES = ("class", "label", "labelname", "label_name", "category", "class_name", "name", "classname")
SIDES = (("width", "height"), ("image_width", "image_height"), ("img_width", "img_height"))
GROUPS = ("isgroupof",)


@dataclass(frozen=True)
class BoxColumns:
    """The columns of a table with one box a row.

    Attributes:
        numbers: the four of a box, or one with a list of four.
        are: what they mean, `xyxy` or `xywh`.
        name: the class; None where there is none.
        sides: width and height of the image that the boxes were drawn on.
        is_open_images: the corners are fractions of the sides, and classes are codes such as /m/0199g.
        group: a column that marks groups of objects, which are left out as crowds are.
    """

    numbers: tuple[str, ...]
    are: str
    name: str | None
    sides: tuple[str, str] | None
    is_open_images: bool
    group: str | None
    others: tuple[str, ...] = ()

    def all(self) -> set[str]:
        """All columns that are read."""
        return {*self.numbers, *(self.sides or ()), *filter(None, (self.name, self.group)), *self.others}

    def read(
        self, row: dict[str, Any], meaning: str | None, class_names: dict[str, str]
    ) -> tuple[Objects, tuple[float, float] | None]:
        """(the box of a row or none where all cells are empty, the size it was drawn on).
        Raises ValueError.
        """
        cells = [row.get(name) for name in self.numbers]
        size = numbers([row.get(name) for name in self.sides], 2) if self.sides else None
        frame = (size[0], size[1]) if size is not None and min(size) > 0 else None
        if all(is_nothing(cell) for cell in cells):
            return Objects((), ()), frame
        if len(cells) == 1:
            text = str(cells[0]).strip("[]() ").replace(";", ",")
            cells = list(text.split(",")) if "," in text else list(text.split())
        four = numbers(cells, 4)
        if four is None:
            raise ValueError(
                f"columns {', '.join(self.numbers)} hold {', '.join(map(repr, cells))}, which are not four "
                "numbers"
            )
        name = label_of(row.get(self.name)) if self.name else "object"
        if name is None:
            raise ValueError(f"column {self.name!r} is empty, so the box has no class")
        if self.group and str(row.get(self.group)).strip() in ("1", "1.0", "true", "True"):
            raise ValueError("a group of objects, which is not a single box")
        how = self.are if meaning in (None, "fractions") else meaning or self.are
        return Objects((as_sizes(four, how),), (class_names.get(name, name),)), frame


def find_box_columns(columns: Sequence[str]) -> BoxColumns | None:
    """The columns of boxes, whatever their case; None where there are none."""
    folded = {name.strip().casefold(): name for name in reversed(columns)}
    known = next((four for four in (*CORNERS, *SIZES) if all(name in folded for name in four)), None)
    are = "xyxy" if known in CORNERS else "xywh"
    if known is not None:
        found = tuple(folded[name] for name in known)
    else:
        one = next((folded[name] for name in ONE_COLUMN if name in folded), None)
        if one is None:
            return None
        found = (one,)
    is_open_images = {"imageid", "labelname", "xmin"} <= folded.keys()
    sides = next(
        (
            (folded[w], folded[h])
            for w, h in SIDES
            if {w, h} <= folded.keys() and not {folded[w], folded[h]} & {*found}
        ),
        None,
    )
    name = next((folded[name] for name in CLASSES if name in folded), None)
    group = next((folded[name] for name in GROUPS if name in folded), None)
    order = {"xmin", "xmax", "ymin", "ymax"} if is_open_images else set()
    return BoxColumns(
        found, are, name, sides, is_open_images, group, tuple(folded[key] for key in order if key in folded)
    )


def read_class_descriptions(tree: Tree) -> dict[str, str]:
    """Code -> name, of Open Images' class-descriptions.csv, which has no header."""
    names: dict[str, str] = {}
    for path in tree.with_suffix(".csv"):
        if "class-descriptions" not in path:
            continue
        rows = Rows(tree.files[path].url)
        if len(rows.columns) == 2 and rows.columns[0].startswith("/m/"):
            names[rows.columns[0]] = rows.columns[1]
        for _, row in rows.good():
            cells = list(row.values())
            if len(cells) == 2:
                names[str(cells[0]).strip()] = str(cells[1]).strip()
    return names
