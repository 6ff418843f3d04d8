"""A COCO json: its images, and what its annotations say about each; read item by item."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError
from pretrain.data.packing.sources.coco_annotations import Annotations
from pretrain.data.packing.sources.coco_ids import Ids
from pretrain.data.packing.sources.coco_images import Images
from pretrain.data.packing.sources.coco_joined import Joined
from pretrain.data.packing.sources.json_stream import json_text
from pretrain.data.packing.sources.texts import clean, id_key


@dataclass(frozen=True)
class LeftOut:
    """What a file has that no image gets, and what to say of it."""

    src: str
    num_crowds: int
    num_blank: int
    notes: list[str]


class Content:
    """What a COCO json holds.

    Attributes:
        meaning: what the numbers of `bbox` are, one of `BOX_MEANINGS`.
        images: in the order of the file.
        said: what is said of each.
        has_categories, num_annotations: of the file.
        left_out: of the file.
    """

    def __init__(self, src: str, boxes: str | None) -> None:
        self.src, self.meaning = src, boxes or "xywh"
        ids = Ids()
        read = _read(src, ids, self.meaning)
        images, annotations = read.get("images"), read.get("annotations") or Annotations(ids, self.meaning)
        if not isinstance(images, Images):
            raise UserError(f"{src} is not a COCO json: it has no list `images`")
        classes, notes = _categories(src, read.get("categories") or [])
        if not isinstance(annotations, Annotations):
            raise UserError(f"{src}: `annotations` must be a list, not {type(annotations).__name__}")
        images.number_ids(src)
        self.images, self.num_annotations, self.has_categories = images, len(annotations), bool(classes)
        by_key = {ids.key(ids.code(key)): name for key, name in classes.items()}
        self.said = Joined(annotations, images.keys, by_key)
        self.left_out = LeftOut(src, self.said.num_crowds, self.said.num_blank, notes)

    def problems(self) -> list[tuple[str, str]]:
        """(location, reason) of annotations that say nothing of any image."""
        return [(f"{self.src}: annotations[{number}]", reason) for number, reason in self.said.problems()]


def _read(src: str, ids: Ids, meaning: str) -> dict[str, Any]:
    """What the file has under the names that count; of a name that comes twice, the last, as Python does.
    Raises UserError when it is missing, huge or no JSON.
    """
    read: dict[str, Any] = {}
    with json_text(src) as text:
        if text.sign() != "{":
            text.pass_over()
            text.end()
            return read
        for name in text.members():
            if name in ("images", "annotations") and text.sign() == "[":
                read[name] = Images(ids) if name == "images" else Annotations(ids, meaning)
                for item in text.items():
                    read[name].append(item)
            elif name in ("images", "annotations", "categories"):
                read[name] = text.value()
            else:
                text.pass_over()
        text.end()
    return read


def _categories(src: str, categories: Any) -> tuple[dict[str | None, str], list[str]]:
    """Names by id, and what to say of them. Raises UserError for ids that stand for several names."""
    if not isinstance(categories, list):
        raise UserError(f"{src}: `categories` must be a list, not {type(categories).__name__}")
    names: dict[str | None, str] = {}
    for index, category in enumerate(categories):
        key = id_key(category.get("id")) if isinstance(category, dict) else None
        name = category.get("name") if isinstance(category, dict) else None
        if key is None or isinstance(name, dict | list) or name is None or not clean(str(name)):
            raise UserError(f"{src}: categories[{index}] needs an `id` and a `name`, but is {category!r}")
        if names.get(key, clean(str(name))) != clean(str(name)):
            raise UserError(
                f"{src}: the id {category['id']!r} stands for the categories {names[key]!r} and "
                f"{clean(str(name))!r}; give each "
                "its own"
            )
        names[key] = clean(str(name))
    num_of = Counter(names.values())
    notes = [
        f"{num} category ids have the name {name!r} and are one class"
        for name, num in num_of.items()
        if num > 1
    ]
    for first in sorted(num_of):
        alike = sorted(name for name in num_of if name.casefold() == first.casefold())
        if len(alike) > 1 and alike[0] == first:
            notes.append(
                f"categories that differ only in case are kept apart: {', '.join(map(repr, alike))}"
            )
    return names, notes
