"""COCO json (https://cocodataset.org/#format-data): boxes or captions of images listed in one file."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from cluster import storage
from cluster.errors import UserError
from pretrain.data.sources.records import Listing, Objects, Record, numbers, read_json, unique


def coco_records(src: str, *, images: str | None = None) -> Listing:
    """The images of an annotation file with their boxes and captions, as far as the file has them.

    Crowd regions are left out and counted in a note, since they are no single objects. Boxes are kept as they stand.

    Args:
        src: the json file, local or in any store; or a folder with a single one.
        images: the folder that `file_name` is relative to; by default a folder `images`, or one named like the file, beside
            the file or one level up, else the file's own folder.

    Raises:
        UserError: when the file is no COCO json.
    """
    if not src.lower().endswith(".json"):
        names = [name for name in storage.names_in(src) if name.lower().endswith(".json")]
        if len(names) != 1:
            held = f"it holds {', '.join(names[:5])}" if names else "there is none in it"
            raise UserError(f"{src} is no .json file; give the annotation file ({held})")
        src = storage.join(src, names[0])
    tree = read_json(src)
    if not isinstance(tree, dict) or not isinstance(tree.get("images"), list):
        raise UserError(f"{src} is no COCO json: it has no list `images`")
    categories = _categories(src, tree)
    listing = Listing([])
    boxes: defaultdict[Any, list[tuple[tuple[float, ...], str]]] = defaultdict(list)
    captions: defaultdict[Any, list[str]] = defaultdict(list)
    annotations = tree.get("annotations", [])
    if not isinstance(annotations, list):
        raise UserError(f"{src}: `annotations` must be a list, not {type(annotations).__name__}")
    ids = Counter(_key(image.get("id")) for image in tree["images"] if isinstance(image, dict))
    if twice := [key for key, num in ids.items() if num > 1 and key is not None]:
        raise UserError(f"{src}: the id {twice[0]!r} stands for {ids[twice[0]]} of `images`; give each its own")
    num_crowds = 0
    for index, annotation in enumerate(annotations):
        place = f"{src}: annotations[{index}]"
        if not isinstance(annotation, dict):
            listing.problems.append((place, "not an object"))
            continue
        image_id = _key(annotation.get("image_id"))
        if image_id is None or image_id not in ids:
            listing.problems.append((place, f"image_id {annotation.get('image_id')!r} is not in `images`"))
        elif isinstance(annotation.get("caption"), str):
            captions[image_id].append(annotation["caption"])
        elif annotation.get("iscrowd"):
            num_crowds += 1
        else:
            bbox = numbers(annotation.get("bbox"), 4)
            category = categories.get(_key(annotation.get("category_id")))
            if bbox is None:
                listing.problems.append((place, f"bbox {annotation.get('bbox')!r} is not four numbers"))
            elif category is None:
                listing.problems.append(
                    (place, f"category_id {annotation.get('category_id')!r} is not in `categories`")
                )
            else:
                boxes[image_id].append((bbox, category))
    folder = _folder(src, tree["images"]) if images is None else images
    with_boxes, with_captions = bool(categories or boxes), bool(captions)
    records = []
    for index, image in enumerate(tree["images"]):
        name = image.get("file_name") if isinstance(image, dict) else None
        if not isinstance(name, str) or not name:
            listing.problems.append((f"{src}: images[{index}]", "no file_name"))
            continue
        key = _key(image.get("id"))
        records.append(
            Record(
                url=name if "://" in name else storage.join(folder, name),
                path=name,
                objects=_objects(boxes[key]) if with_boxes else None,
                captions=tuple(captions[key]) if with_captions else None,
            )
        )
    listing.records = unique(records, src)
    if num_crowds:
        listing.notes.append(f"{num_crowds} crowd regions are left out")
    return listing


def _objects(pairs: list[tuple[tuple[float, ...], str]]) -> Objects:
    return Objects(tuple((x, y, w, h) for (x, y, w, h), _ in pairs), tuple(category for _, category in pairs))


def _key(value: Any) -> Any:
    """An id as a dictionary's key; what cannot be one matches nothing."""
    return value if isinstance(value, int | str) else None


def _categories(src: str, tree: dict[str, Any]) -> dict[Any, str]:
    categories = tree.get("categories", [])
    if not isinstance(categories, list):
        raise UserError(f"{src}: `categories` must be a list, not {type(categories).__name__}")
    names = {}
    for index, category in enumerate(categories):
        if not isinstance(category, dict) or _key(category.get("id")) is None or not category.get("name"):
            raise UserError(f"{src}: categories[{index}] needs an `id` and a `name`, but is {category!r}")
        names[_key(category["id"])] = str(category["name"])
    return names


def _folder(src: str, images: list[Any]) -> str:
    """Where the first image lies, of the usual places."""
    first = next((image["file_name"] for image in images if isinstance(image, dict) and image.get("file_name")), None)
    beside, _, file = src.rpartition("/")
    beside = beside or "."
    above = beside.rpartition("/")[0] or "."
    stem = file.rpartition(".")[0]
    # annotations/instances_train2017.json speaks of ../train2017 or ../images/train2017
    split = stem.rpartition("_")[2]
    places = [beside, *(storage.join(base, name) for base in (beside, above) for name in ("images", stem, split))]
    places += [storage.join(base, "images", split) for base in (beside, above)]
    for place in places:
        if isinstance(first, str) and storage.exists(storage.join(place, first)):
            return place
    raise UserError(
        f"{src}: the first image, {first}, is in none of {', '.join(places)}; say where the images are with --images FOLDER"
    )
