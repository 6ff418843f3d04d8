"""The images that a COCO json lists, in 33 bytes each and their names."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.errors import UserError
from pretrain.data.packing.sources.coco_ids import NO_ID, Ids
from pretrain.data.packing.sources.coco_joined import Grouped
from pretrain.data.packing.sources.file_table import TextRun
from pretrain.data.packing.sources.records import numbers


@dataclass(frozen=True)
class ImageEntry:
    """An item of the list `images`.

    Attributes:
        name: a path or an address; empty where it has none.
        has_file_name: whether the name is more than an address.
        frame: (width, height) in pixels, where they are said.
        group: the place of its id in `Images.keys`; -1 for none.
    """

    name: str
    has_file_name: bool
    frame: tuple[float, float] | None
    group: int


class Images:
    """The list `images` of a file. First all are added, then `number_ids` is called.

    Attributes:
        keys: the keys of the ids, sorted, each once; int64.
    """

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._names, self._codes, self._frames = TextRun(), array("q"), array("d")
        self._have_file_name = bytearray()
        self.keys, self._groups = np.empty(0, np.int64), np.empty(0, np.int32)

    def append(self, item: Any) -> None:
        """Adds an item of the list."""
        image = item if isinstance(item, dict) else {}
        self._names.append(_name_of(image))
        self._codes.append(self._ids.code(image.get("id")))
        self._frames.extend(_frame_of(image) or (0, 0))
        self._have_file_name.append(bool(image.get("file_name")))

    def number_ids(self, src: str) -> None:
        """Finds the ids of all. Raises UserError for one that images of several names have."""
        keys = self._ids.keys(self._codes)
        self.keys, first, nums = np.unique(keys, return_index=True, return_counts=True)
        is_id = self.keys != NO_ID
        self.keys, first, nums = self.keys[is_id], first[is_id], nums[is_id]
        self._groups = np.searchsorted(self.keys, keys).astype(np.int32)
        self._groups[keys == NO_ID] = -1
        if not np.any(nums > 1):
            return
        images_of = Grouped(self._groups, np.arange(len(keys), dtype=np.int32))
        for number in np.sort(first[nums > 1]).tolist():
            alike = images_of.of(int(self._groups[number]))
            if len({self._names[one] for one in alike}) > 1:
                raise UserError(
                    f"{src}: the id {self._ids.value(self._codes[number])!r} stands for {len(alike)} of "
                    "`images`; give each its own"
                )

    def names(self) -> Iterator[str]:
        """The names of those that have one."""
        return filter(None, self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[ImageEntry]:
        for number, name in enumerate(self._names):
            width, height = self._frames[2 * number : 2 * number + 2]
            frame = (width, height) if width else None
            yield ImageEntry(name, bool(self._have_file_name[number]), frame, int(self._groups[number]))


def _name_of(image: dict[str, Any]) -> str:
    for key in ("file_name", "filename", "coco_url", "url"):
        if isinstance(image.get(key), str) and image[key].strip():
            return str(image[key])
    return ""


def _frame_of(image: dict[str, Any]) -> tuple[float, float] | None:
    size = numbers([image.get("width"), image.get("height")], 2)
    return (size[0], size[1]) if size is not None and min(size) > 0 else None
