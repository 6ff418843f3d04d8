"""A COCO json as Python objects: its images by id, with what its annotations say about each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import UserError
from pretrain.data.packing.sources.records import around, as_sizes, numbers, read_json
from pretrain.data.packing.sources.texts import captions_in, clean, id_key


@dataclass
class ImageSaid:
    """What a file says about one image."""

    boxes: list[tuple[tuple[float, float, float, float], str]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    num_bad: int = 0
    num_crowds: int = 0
    first_bad: str = ""


class Content:
    """A COCO json as Python objects: images by id, with their annotations."""

    def __init__(self, src: str, boxes: str | None) -> None:
        self.src, self.meaning = src, boxes or "xywh"
        tree = read_json(src)
        if not isinstance(tree, dict) or not isinstance(tree.get("images"), list):
            raise UserError(f"{src} is not a COCO json: it has no list `images`")
        self.images: list[Any] = tree["images"]
        self.categories, self.notes = _categories(src, tree)
        annotations = tree.get("annotations") or []
        if not isinstance(annotations, list):
            raise UserError(f"{src}: `annotations` must be a list, not {type(annotations).__name__}")
        self.num_annotations = len(annotations)
        ids = Counter(id_key(image.get("id")) for image in self.images if isinstance(image, dict))
        files = Counter(
            (id_key(image.get("id")), name_of(image)) for image in self.images if isinstance(image, dict)
        )
        for key, num in ids.items():
            same = (
                max(files[pair] for pair in files if pair[0] == key) if num > 1 and key is not None else num
            )
            if num > same:
                raise UserError(
                    f"{src}: the id {_shown_id(self.images, key)} stands for {num} of `images`; give each "
                    "its own"
                )
        self.of: defaultdict[str | None, ImageSaid] = defaultdict(ImageSaid)
        self.num_crowds = self.num_blank = self.num_unreadable_captions = 0
        self.has_captions = self.has_boxes = False
        self.problems: list[tuple[str, str]] = []
        for index, annotation in enumerate(annotations):
            self._take(f"{src}: annotations[{index}]", annotation, ids)
            annotations[index] = None  # its polygons may take more memory than all else

    def names(self) -> list[str]:
        """The file names that stand in it."""
        return [name for image in self.images if isinstance(image, dict) and (name := name_of(image))]

    def _take(self, location: str, annotation: Any, ids: Counter[str | None]) -> None:
        if not isinstance(annotation, dict):
            self.problems.append((location, "not an object"))
            return
        key = id_key(annotation.get("image_id"))
        if key is None or key not in ids:
            self.problems.append((location, f"image_id {annotation.get('image_id')!r} is not in `images`"))
            return
        image = self.of[key]
        said = "caption" in annotation
        if said:
            self.has_captions = True
            captions, num_bad = captions_in(annotation["caption"])
            image.captions += captions
            self.num_blank += not captions and not num_bad
            if num_bad:
                self.problems.append((location, f"caption {str(annotation['caption'])[:60]!r} is not text"))
        has_box = annotation.get("bbox") is not None or annotation.get("segmentation") is not None
        if said and not has_box and "category_id" not in annotation:
            return
        if _is_crowd(annotation.get("iscrowd")):
            self.num_crowds += 1
            image.num_crowds += 1
            return
        box = _box(annotation, self.meaning)
        category = self.categories.get(id_key(annotation.get("category_id")))
        reason = None
        if box is None:
            reason = f"bbox {str(annotation.get('bbox'))[:80]} is not four numbers"
        elif category is None:
            reason = f"category_id {annotation.get('category_id')!r} is not in `categories`"
        if reason is None:
            assert box is not None and category is not None
            self.has_boxes = True
            image.boxes.append((box, category))
            return
        self.problems.append((location, reason))
        image.num_bad += 1
        image.first_bad = image.first_bad or reason


def name_of(image: dict[str, Any]) -> str:
    for key in ("file_name", "filename", "coco_url", "url"):
        if isinstance(image.get(key), str) and image[key].strip():
            return str(image[key])
    return ""


def _shown_id(images: Sequence[Any], key: str | None) -> str:
    return repr(
        next(image["id"] for image in images if isinstance(image, dict) and id_key(image.get("id")) == key)
    )


def frame_of(image: dict[str, Any]) -> tuple[float, float] | None:
    size = numbers([image.get("width"), image.get("height")], 2)
    return (size[0], size[1]) if size is not None and min(size) > 0 else None


def _is_crowd(value: Any) -> bool:
    return value not in (None, 0, "0", "", "false", "False", 0.0, False) and bool(value)


def _box(annotation: dict[str, Any], meaning: str) -> tuple[float, float, float, float] | None:
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


def _categories(src: str, tree: dict[str, Any]) -> tuple[dict[str | None, str], list[str]]:
    """Names by id, and what to say of them. Raises UserError for ids that stand for several names."""
    categories = tree.get("categories") or []
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
