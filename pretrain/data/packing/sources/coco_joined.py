"""What a COCO json says, image by image."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pretrain.data.packing.sources.coco_annotations import (
    BAD_BOX,
    BAD_CAPTION,
    BLANK,
    BOX,
    CAPTION,
    CROWD,
    NO_OBJECT,
    TEXTS,
    Annotations,
    Box,
)


@dataclass(frozen=True)
class ImageSaid:
    """What a file says about one image."""

    boxes: tuple[tuple[Box, str], ...] = ()
    captions: tuple[str, ...] = ()
    num_bad: int = 0
    num_crowds: int = 0
    first_bad: str = ""


class Grouped:
    """Numbers by group, in their order: 4 bytes each, and 4 for each group.

    Args:
        groups: of each of the numbers; those of -1 are in none. int32.
        numbers: int32.
    """

    def __init__(self, groups: np.ndarray, numbers: np.ndarray) -> None:
        order = np.argsort(groups, kind="stable")
        num_groups = int(groups.max(initial=-1)) + 1
        self._starts = np.searchsorted(groups[order], np.arange(num_groups + 1)).astype(np.int32)
        self._numbers = numbers[order]

    def of(self, group: int) -> list[int]:
        """The numbers of a group, of which there may be none."""
        if group + 1 >= len(self._starts):
            return []
        numbers: list[int] = self._numbers[self._starts[group] : self._starts[group + 1]].tolist()
        return numbers


class Joined:
    """The annotations of a file by the image that they speak of.

    Args:
        annotations: all of the file.
        image_keys: the keys of the ids of its images, sorted, each once; int64.
        classes: the names of its categories by key.

    Attributes:
        num_crowds, num_blank: crowd regions and blank captions of the images.
        has_captions, has_boxes: whether any image has such.
    """

    def __init__(self, annotations: Annotations, image_keys: np.ndarray, classes: Mapping[int, str]) -> None:
        self._all, self._flags = annotations, annotations.flags
        self._classes = [classes.get(key) for key in annotations.category_keys()]
        groups = annotations.groups(image_keys)
        known, flags = groups >= 0, np.frombuffer(self._flags, np.uint8)
        self.num_crowds = int(np.count_nonzero(known & (flags & CROWD > 0)))
        self.num_blank = int(np.count_nonzero(known & (flags & BLANK > 0)))
        self.has_captions = bool(np.any(known & (flags & CAPTION > 0)))
        self._texts_at = array("i", np.flatnonzero(flags & TEXTS).astype(np.int32).tobytes())
        box_at = np.flatnonzero(flags & BOX).astype(np.int32)
        self._box_at = array("i", box_at.tobytes())
        has_class = np.array([name is not None for name in self._classes], bool)[annotations.categories()]
        of_box = np.where(has_class, groups[box_at], -1)
        self.has_boxes = bool(np.any(of_box >= 0))
        self._boxes_of = Grouped(of_box, np.arange(len(of_box), dtype=np.int32))
        no_class = box_at[~has_class]
        # few in a file of boxes: what is more than a box with its class, and what is less
        is_rest = flags & (CROWD | TEXTS) > 0
        is_rest[no_class] = True
        rest = np.flatnonzero(is_rest & known).astype(np.int32)
        self._rest_of = Grouped(groups[rest], rest)
        is_bad = ~known | (flags & (BAD_CAPTION | BAD_BOX) > 0)
        is_bad[no_class] = True
        self._bad, self._unknown = np.flatnonzero(is_bad).astype(np.int32), np.flatnonzero(~known)

    def said(self, group: int) -> ImageSaid:
        """What is said of the images with an id, by its place in `image_keys`; -1 for no id."""
        if group < 0:
            return ImageSaid()
        boxes: list[tuple[Box, str]] = []
        for number in self._boxes_of.of(group):
            box, category = self._all.box(number)
            name = self._classes[category]
            assert name is not None
            boxes.append((box, name))
        captions, bad, num_crowds = list[str](), list[str](), 0
        for number in self._rest_of.of(group):
            flags = self._flags[number]
            num_crowds += bool(flags & CROWD)
            if flags & TEXTS:
                captions += self._texts(number)[0]
            if flags & (BOX | BAD_BOX):
                bad += self._bad_box(number)
        return ImageSaid(tuple(boxes), tuple(captions), len(bad), num_crowds, bad[0] if bad else "")

    def problems(self) -> Iterator[tuple[int, str]]:
        """(number, what is wrong with it) of annotations, in their order."""
        unknown = set(self._unknown.tolist())
        for number in self._bad.tolist():
            flags = self._flags[number]
            if flags & NO_OBJECT:
                yield number, "not an object"
            elif number in unknown:
                yield number, f"image_id {self._all.image_id(number)!r} is not in `images`"
            else:
                if flags & BAD_CAPTION:
                    yield number, f"caption {self._texts(number)[1]!r} is not text"
                for reason in self._bad_box(number):
                    yield number, reason

    def _texts(self, number: int) -> tuple[list[str], str, str]:
        return self._all.texts(bisect_left(self._texts_at, number))

    def _bad_box(self, number: int) -> list[str]:
        """Why an annotation is no box with a class; nothing where it is one, or means to be none."""
        flags = self._flags[number]
        if flags & BAD_BOX:
            return [f"bbox {self._texts(number)[2]} is not four numbers"]
        if flags & BOX:
            _, category = self._all.box(bisect_left(self._box_at, number))
            if self._classes[category] is None:
                return [f"category_id {self._all.category_id(category)!r} is not in `categories`"]
        return []
