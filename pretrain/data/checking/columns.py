"""The columns with annotations that a check looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from cluster.errors import UserError
from pretrain.data.reading.annotation_columns import (
    BOXES_COLUMNS,
    CAPTIONS_COLUMNS,
    BoxColumn,
    BoxFormat,
    CaptionColumn,
    ClassColumn,
    find_boxes_column,
    find_captions_column,
    find_class_column,
)

CLASS_COLUMNS = ("label", "labels")  # looked at without being named, where their type fits

Column = TypeVar("Column", ClassColumn, BoxColumn, CaptionColumn)


@dataclass(frozen=True)
class Asked:
    """The columns to look at, None and () for the usual names; `boxes` are read as `box_format`."""

    classes: tuple[str, ...] = ()
    boxes: str | None = None
    captions: str | None = None
    box_format: BoxFormat = "xywh"


@dataclass(frozen=True)
class AnnotationColumns:
    """The columns with annotations that were found, and why others of a usual name are not looked at."""

    classes: list[ClassColumn]
    boxes: BoxColumn | None
    captions: CaptionColumn | None
    passed_over: list[str]

    @classmethod
    def of(cls, schema: pa.Schema, asked: Asked, url: str) -> AnnotationColumns:
        """Raises UserError for a column that was asked for and does not suit; others are passed over."""
        passed_over: list[str] = []

        def found(
            find: Callable[[pa.Schema, str, str], Column], named: Sequence[str], usual: Sequence[str]
        ) -> list[Column]:
            if named:
                return [find(schema, name, url) for name in dict.fromkeys(named)]
            columns = []
            for name in usual:
                if name in schema.names:
                    try:
                        columns.append(find(schema, name, url))
                    except UserError as error:  # nobody said that it is what its name is used for
                        passed_over.append(str(error))
            return columns

        def boxes_in(schema: pa.Schema, column: str | None, url: str) -> BoxColumn:
            return find_boxes_column(schema, column, url, asked.box_format)

        classes = found(find_class_column, asked.classes, CLASS_COLUMNS)
        boxes = found(boxes_in, _given(asked.boxes), BOXES_COLUMNS)
        if not boxes:
            with suppress(UserError):  # their type tells boxes, whatever the column is called
                boxes = [boxes_in(schema, None, url)]
        captions = found(find_captions_column, _given(asked.captions), CAPTIONS_COLUMNS)
        return cls(classes, next(iter(boxes), None), next(iter(captions), None), passed_over)

    @property
    def names(self) -> list[str]:
        """All of them, each once."""
        names = [column.column for column in self.classes]
        names += [column.column for column in (self.boxes, self.captions) if column is not None]
        return list(dict.fromkeys(names))


def _given(name: str | None) -> tuple[str, ...]:
    return () if name is None else (name,)
