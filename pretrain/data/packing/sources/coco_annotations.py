"""The annotations of a COCO json, in 9 bytes each, 36 for each box, and its captions' text."""

from __future__ import annotations

import json
from array import array
from typing import Any

import numpy as np

from pretrain.data.packing.sources.coco_ids import Ids
from pretrain.data.packing.sources.file_table import TextRun
from pretrain.data.packing.sources.records import around, as_sizes, numbers
from pretrain.data.packing.sources.texts import captions_in

Box = tuple[float, float, float, float]
# what an annotation has; TEXTS are captions, or what is said of damage
NO_OBJECT, CAPTION, BLANK, BAD_CAPTION, CROWD, BOX, BAD_BOX, TEXTS = (1 << bit for bit in range(8))
PLAIN = "="  # before one caption; other texts are JSON


class Annotations:
    """The annotations of a file, in its order, whose images and categories may come behind them.

    Args:
        ids: of the file.
        meaning: what the numbers of `bbox` are, one of `BOX_MEANINGS`.

    Attributes:
        flags: what each annotation has, as bits.
    """

    def __init__(self, ids: Ids, meaning: str) -> None:
        self._ids, self._meaning = ids, meaning
        self.flags = bytearray()
        self._images = array("q")  # of each annotation, the code of its image's id
        self._categories, self._boxes = array("i"), array("d")  # of each box
        self._texts = TextRun()  # of each annotation with texts; a `Spool` would take twice the time
        self._category_codes: list[int] = []
        self._number_of_category: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.flags)

    def append(self, annotation: Any) -> None:
        """Adds an item of the list `annotations`."""
        if not isinstance(annotation, dict):
            self._images.append(self._ids.code(None))
            self.flags.append(NO_OBJECT)
            return
        flags, captions, shown, box_shown = 0, list[str](), "", ""
        if "caption" in annotation:
            captions, num_bad = captions_in(annotation["caption"])
            flags = CAPTION
            flags |= BAD_CAPTION if num_bad else 0 if captions else BLANK
            shown = str(annotation["caption"])[:60] if num_bad else ""
        has_box = annotation.get("bbox") is not None or annotation.get("segmentation") is not None
        if has_box or not flags or "category_id" in annotation:
            if _is_crowd(annotation.get("iscrowd")):
                flags |= CROWD
            elif (box := _box(annotation, self._meaning)) is not None:
                flags |= BOX
                self._categories.append(self._category(annotation.get("category_id")))
                self._boxes.extend(box)
            else:
                flags |= BAD_BOX
                box_shown = str(annotation.get("bbox"))[:80]
        if captions or flags & (BAD_CAPTION | BAD_BOX):
            flags |= TEXTS
            is_plain = len(captions) == 1 and not (shown or box_shown)
            self._texts.append(PLAIN + captions[0] if is_plain else json.dumps([captions, shown, box_shown]))
        self._images.append(self._ids.code(annotation.get("image_id")))
        self.flags.append(flags)

    def _category(self, value: Any) -> int:
        code = self._ids.code(value)
        number = self._number_of_category.setdefault(code, len(self._category_codes))
        if number == len(self._category_codes):
            self._category_codes.append(code)
        return number

    def groups(self, image_keys: np.ndarray) -> np.ndarray:
        """Of each annotation, the place of its image's id in `image_keys` (sorted, each once; int64);
        -1 for an image that is not there. Shape (len(self),), int32.
        """
        keys = self._ids.keys(self._images)
        groups = np.searchsorted(image_keys, keys).astype(np.int32)
        groups[groups == len(image_keys)] = -1
        if len(image_keys):
            groups[image_keys[groups] != keys] = -1
        return groups

    def categories(self) -> np.ndarray:
        """Of each box, the number of its category. Shape (number of boxes,), int32."""
        return np.frombuffer(self._categories, np.int32)

    def category_keys(self) -> list[int]:
        """Of each category, the key of its id."""
        return [self._ids.key(code) for code in self._category_codes]

    def box(self, number: int) -> tuple[Box, int]:
        """A box and the number of its category."""
        left, top, width, height = self._boxes[4 * number : 4 * number + 4]
        return (left, top, width, height), self._categories[number]

    def texts(self, number: int) -> tuple[list[str], str, str]:
        """Of the so many-th annotation that has texts: captions; the caption and the `bbox` that cannot be
        read, in short.
        """
        text = self._texts[number]
        if text.startswith(PLAIN):
            return [text.removeprefix(PLAIN)], "", ""
        captions, caption, bbox = json.loads(text)
        return captions, caption, bbox

    def image_id(self, number: int) -> Any:
        """What an annotation has as such."""
        return self._ids.value(self._images[number])

    def category_id(self, number: int) -> Any:
        """What stands for a category."""
        return self._ids.value(self._category_codes[number])


def _is_crowd(value: Any) -> bool:
    return value not in (None, 0, "0", "", "false", "False", 0.0, False) and bool(value)


def _box(annotation: dict[str, Any], meaning: str) -> Box | None:
    four = numbers(annotation.get("bbox"), 4)
    if four is not None:
        return as_sizes(four, meaning)
    if annotation.get("bbox"):
        return None
    polygons = annotation.get("segmentation")
    if not isinstance(polygons, list):
        return None
    if polygons and not isinstance(polygons[0], list):
        polygons = [polygons]
    points = []
    for polygon in polygons:
        flat = numbers(polygon, len(polygon)) if isinstance(polygon, list) and len(polygon) >= 6 else None
        if flat is None or len(flat) % 2:
            return None
        points += list(zip(flat[::2], flat[1::2], strict=True))
    return around(points) if points else None
