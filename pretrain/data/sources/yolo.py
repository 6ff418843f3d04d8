"""YOLO txt (https://docs.ultralytics.com/datasets/detect/): a line `class cx cy w h` for each box, in shares of the sides."""

from __future__ import annotations

import posixpath
from typing import Any

import yaml

from cluster import storage
from cluster.errors import UserError
from pretrain.data.manifest import IMAGE_SUFFIXES
from pretrain.data.sources.records import Listing, Objects, Record, files_below, numbers, read_small, read_text, unique

NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names", "labels/classes.txt")


def yolo_records(src: str) -> Listing:
    """The images below `src`, with the boxes of the txt file beside each, or in `labels/` where it lies in `images/`.

    Class names come from data.yaml, classes.txt or obj.names in `src`; without them classes are named by their numbers. An
    image without a txt file has no boxes, as YOLO has it. `src` may also be the data.yaml itself, which stands for its folder.

    Raises:
        UserError: when no image has a txt file, or the class names cannot be read.
    """
    if src.lower().endswith((".yaml", ".yml")):
        src = src.rpartition("/")[0] or "."
    images = files_below(src, IMAGE_SUFFIXES)
    texts = files_below(src, (".txt",))
    names = _class_names(src)
    pairs = {path: next((label for label in _label_paths(path) if label in texts), None) for path in images}
    if not any(pairs.values()):
        raise UserError(f"no image in {src} has a .txt file beside it or in labels/; YOLO has one for each image")
    listing = Listing([])
    contents = read_small(texts[label] if label else None for label in pairs.values())
    for (path, label), content in zip(pairs.items(), contents, strict=True):
        objects = _parse(content.decode("utf-8", "replace"), label or "", names, listing)
        listing.records.append(
            Record(images[path].url, path, images[path].size_bytes, objects=objects, relative_boxes=True)
        )
    used = {label for label in pairs.values() if label}
    listing.problems += [
        (path, "no image of its name")
        for path in texts
        if path not in used and "labels" in path.split("/")[:-1] and path not in NAME_FILES
    ]
    listing.records = unique(listing.records, src)
    if names is None:
        listing.notes.append(
            f"no class names in {src} ({', '.join(NAME_FILES[:4])}): classes are named by their numbers"
        )
    return listing


def _label_paths(image: str) -> list[str]:
    stem = posixpath.splitext(image)[0]
    parts = stem.split("/")
    places = [stem]
    if "images" in parts:  # the last folder of that name, as ultralytics has it
        index = len(parts) - 1 - parts[::-1].index("images")
        places.insert(0, "/".join([*parts[:index], "labels", *parts[index + 1 :]]))
    return [f"{place}.txt" for place in places]


def _class_names(src: str) -> dict[int, str] | None:
    for name in NAME_FILES:
        url = storage.join(src, name)
        if not storage.exists(url):
            continue
        text = read_text(url)
        if not name.endswith((".yaml", ".yml")):
            return dict(enumerate(line.strip() for line in text.splitlines() if line.strip()))
        try:
            tree = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"{url} is not valid YAML: {str(error).splitlines()[0]}") from error
        names: Any = tree.get("names") if isinstance(tree, dict) else None
        if isinstance(names, list):
            names = dict(enumerate(names))
        # only plain values are made text: aliases of aliases would grow without bound, and YAML reads a bare `no` as False
        if isinstance(names, dict) and all(
            type(number) is int and isinstance(name, str | int | float) and not isinstance(name, bool)
            for number, name in names.items()
        ):
            return {number: str(name) for number, name in names.items()}
        raise UserError(
            f"{url}: `names` must be a list of class names, or numbers with names; put names such as no, yes, on and off "
            "into quotes"
        )
    return None


def _parse(text: str, place: str, names: dict[int, str] | None, listing: Listing) -> Objects:
    boxes, classes = [], []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            values = numbers([float(word) for word in words[1:5]], 4) if len(words) in (5, 6) else None
            class_id = int(words[0])
        except ValueError:
            values = None
        if values is None:
            listing.problems.append((f"{place}, line {number}", f"not `class cx cy w h`: {line[:60]!r}"))
            continue
        if names is not None and class_id not in names:
            listing.problems.append((f"{place}, line {number}", f"class {class_id} has no name"))
            continue
        cx, cy, width, height = values
        boxes.append((cx - width / 2, cy - height / 2, width, height))
        classes.append(names[class_id] if names is not None else str(class_id))
    return Objects(tuple(boxes), tuple(classes))
