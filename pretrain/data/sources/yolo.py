"""YOLO txt (https://docs.ultralytics.com/datasets/detect/): a line `class cx cy w h` for each box, in shares of the sides."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from cluster import storage
from cluster.errors import UserError
from pretrain.data.sources.evidence import Evidence, label_places
from pretrain.data.sources.records import (
    Listing,
    Objects,
    Record,
    around,
    as_sizes,
    numbers,
    read_small,
    read_text,
    unique,
)
from pretrain.data.sources.splits import TEST, TRAIN, VALIDATION
from pretrain.data.sources.texts import clean, decode_text, shown
from pretrain.data.sources.tree import Tree, read_tree

NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
MOST_OVER = 1.01  # a share a hair above 1 is rounding; trainers take it so
_SPLIT_KEYS = (("train", TRAIN), ("val", VALIDATION), ("valid", VALIDATION), ("validation", VALIDATION), ("test", TEST))


@dataclass
class _Setup:
    """What data.yaml, obj.data, classes.txt and the like say of a set.

    Attributes:
        names: class names by number; None where no file has any.
        splits: split -> folders, files and lists of pictures, as paths below the root.
        read: the files that were read for it.
        key_points: how many numbers of key points a line ends with, where the set has such.
    """

    names: dict[int, str] | None = None
    splits: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)
    key_points: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)


def yolo_records(
    src: str, *, tree: Tree | None = None, boxes: str | None = None, leave_out: str | None = None
) -> Listing:
    """The images below `src`, with the boxes of the txt file beside each, or in `labels/` where it lies in `images/`.

    Class names come from a yaml, classes.txt or obj.names in `src`, or from data.yaml one folder up; without them classes are
    named by their numbers. An image without a txt file has no boxes, as YOLO has it. `src` may also be the yaml itself, which
    stands for its folder. Where a yaml (or obj.data) names folders or lists for training, validation and test, these are the
    splits, and other images are left out.

    A line of five numbers is a box, with a sixth its confidence, which is not read; `class x1 y1 x2 y2 x3 y3 ...` is a polygon,
    of which the box around it is taken, as Ultralytics does; with `kpt_shape` in the yaml further numbers are key points. Lines
    that come twice count once. Numbers above 1 are no shares: such lines are set aside.

    Args:
        src: folder, or the yaml.
        tree: of `src`, where it is known already.
        boxes: what the four numbers are: by default `cxcywh` in shares; `xywh`, `xyxy` and `cxcywh` are pixels.
        leave_out: a folder to pass over.

    Raises:
        UserError: when no image has a txt file, the class names cannot be read, or most numbers are pixels.
    """
    named = ""
    if src.lower().endswith((".yaml", ".yml")):
        folder, _, named = src.rpartition("/")
        src = folder or "."
        tree = None
    tree = tree or read_tree(src, leave_out=leave_out)
    evidence = Evidence(tree)
    setup = _setup(src, tree, evidence, named)
    listing = Listing([], notes=setup.notes, tree=tree)
    listing.account.read.update(path for path in setup.read if path in tree.files)
    split_of = _split_by_lists(src, tree, setup, listing)
    images = {path: file for path, file in tree.pictures.items() if split_of is None or path in split_of}
    label_of, shared = _labels(images, tree, listing)
    if not any(label_of.values()):
        raise UserError(f"no image in {src} has a .txt file beside it or in labels/; YOLO has one for each image")
    num_files, named_by = sum(map(bool, label_of.values())), shown(setup.read, 2) or "no file"
    listing.told = f"YOLO: {num_files} txt files with boxes, class names of {named_by}"
    contents = read_small(tree.files[label] if label else None for label in label_of.values())
    reader = _Reader(setup, boxes, listing)
    num_without = 0
    objects: Objects
    problem: str | None
    for (path, label), content in zip(label_of.items(), contents, strict=True):
        if label in shared:
            stands_for = ", ".join(shared[label])
            objects, problem = Objects((), ()), f"{label} stands for {stands_for}; which of them is not said"
        else:
            objects, problem = reader.read(content, label or "") if label else (Objects((), ()), None)
        num_without += label is None
        listing.records.append(
            Record(
                images[path].url,
                path,
                images[path].size_bytes,
                objects=objects,
                relative_boxes=boxes in (None, "shares"),
                split=split_of[path] if split_of is not None else None,
                problem=problem,
            )
        )
    used = {label for label in label_of.values() if label}
    listing.account.read |= used
    lone = [
        path
        for path in tree.with_suffix(".txt")
        if path not in used
        and "labels" in path.split("/")[:-1]
        and posixpath.basename(path) not in NAME_FILES
        and (split_of is None or evidence.texts.get(path) is None)
    ]
    listing.problems += [(path, "no image of its name") for path in lone]
    listing.account.left.update(dict.fromkeys(lone, "boxes without an image of their name"))
    reader.finish(src)
    listing.records = unique(listing.records, src)
    if num_without:
        listing.notes.append(f"{num_without} images without a .txt file are packed as background, with no boxes")
    if setup.names is None:
        listing.notes.append(f"no class names in {src} ({', '.join(NAME_FILES)}): classes are named by their numbers")
    return listing


def _labels(images: dict[str, Any], tree: Tree, listing: Listing) -> tuple[dict[str, str | None], dict[str, list[str]]]:
    """(image -> its txt file or None, txt file -> images of one stem where it may be of several)."""
    found: dict[str, str | None] = {}
    images_of: dict[str, list[str]] = {}
    for path in images:
        label = None
        for place in label_places(path):
            known = tree.lower.get(f"{place}.txt".lower())
            if known is not None and posixpath.basename(known) not in NAME_FILES:
                label = known
                break
        found[path] = label
        if label is not None:
            images_of.setdefault(label, []).append(path)
    return found, {label: paths for label, paths in images_of.items() if len(paths) > 1}


class _Reader:
    """Reads label files and counts what is in them."""

    def __init__(self, setup: _Setup, boxes: str | None, listing: Listing) -> None:
        self._names, self._key_points = setup.names, setup.key_points
        self._meaning, self._listing = boxes, listing
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def read(self, data: bytes, place: str) -> tuple[Objects, str | None]:
        """(boxes of one file, why its picture cannot be used or None)."""
        account, problems = self._listing.account, self._listing.problems
        try:
            text, _ = decode_text(data)
        except ValueError as error:
            problems.append((place, str(error)))
            account.annotations += 1
            return Objects((), ()), f"its labels {place} are {error}"
        found: dict[tuple[tuple[float, float, float, float], str], None] = {}
        bad: list[str] = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            account.annotations += 1
            try:
                pair = self._line(line)
            except ValueError as error:
                problems.append((f"{place}, line {number}", str(error)))
                bad.append(str(error))
                continue
            if pair in found:
                self._count("line that comes twice in its file, taken once", f"{place}, line {number}")
            found[pair] = None
        problem = None
        if bad and not found:
            problem = f"none of its {len(bad)} boxes can be read ({bad[0]}); it would pass for an image without any"
        return Objects(tuple(box for box, _ in found), tuple(name for _, name in found)), problem

    def _line(self, line: str) -> tuple[tuple[float, float, float, float], str]:
        words = re.split(r"[\s,;]+", line.strip().strip(",;"))
        try:
            class_id = float(words[0])
            values = numbers(words[1:], len(words) - 1)
        except ValueError:
            class_id, values = -1.0, None
        if values is None or len(values) < 4 or not class_id.is_integer() or class_id < 0:
            raise ValueError(f"not `class cx cy w h`: {line[:60]!r}")
        box = self._box(values, line)
        if self._names is None:
            return box, str(int(class_id))
        if int(class_id) not in self._names:
            raise ValueError(f"class {int(class_id)} has no name")
        return box, self._names[int(class_id)]

    def _box(self, values: tuple[float, ...], line: str) -> tuple[float, float, float, float]:
        in_pixels = self._meaning not in (None, "shares")
        key_points = self._key_points
        as_box = len(values) in (4, 5) or (key_points is not None and len(values) == 4 + key_points[0] * key_points[1])
        if as_box:
            points = values[:4]
        elif len(values) >= 6 and len(values) % 2 == 0:
            points = values
        elif len(values) >= 7 and len(values) % 2:  # a polygon and a confidence
            points = values[:-1]
        else:
            raise ValueError(f"not `class cx cy w h`: {line[:60]!r}")
        if not in_pixels and max(points) > MOST_OVER:
            self._counts["pixels"] += 1
            raise ValueError(f"numbers above 1 are pixels, not shares of the sides: {line[:60]!r}")
        if not in_pixels and min(points) < -0.01:
            raise ValueError(f"numbers below 0 are no shares of the sides: {line[:60]!r}")
        if as_box:
            return as_sizes(points, "cxcywh" if not in_pixels else self._meaning or "")
        return around(list(zip(points[::2], points[1::2], strict=True)))

    def _count(self, kind: str, example: str) -> None:
        self._counts[kind] += 1
        self._first.setdefault(kind, example)

    def finish(self, src: str) -> None:
        """Raises UserError where most lines hold pixels; says what else was seen."""
        listing = self._listing
        if self._counts["pixels"] * 2 > listing.account.annotations:
            raise UserError(
                f"{src}: the numbers of {self._counts['pixels']} of {listing.account.annotations} boxes are above 1 (first: "
                f"{listing.problems[0][0]}), so they are pixels, where YOLO has shares of the sides; --boxes "
                "cxcywh reads them as "
                "centre and size, xywh as left, top, width and height, xyxy as corners"
            )
        for kind, example in self._first.items():
            listing.account.count(kind, example, self._counts[kind])
            listing.notes.append(f"{self._counts[kind]} times a {kind} (first: {example})")


def _setup(src: str, tree: Tree, evidence: Evidence, named: str) -> _Setup:
    """What the files of class names and splits say; `named` is the yaml that the user gave."""
    setup = _Setup()
    files = [named] if named else evidence.name_files
    urls = [(path, tree.files[path].url if path in tree.files else storage.join(src, path)) for path in files]
    if not urls and "/" in src.rstrip("/"):  # one split of a set: its data.yaml lies a folder up
        above = src.rstrip("/").rpartition("/")[0]
        urls = [(f"../{name}", url) for name in NAME_FILES[:3] if storage.exists(url := storage.join(above, name))]
    for path, url in urls:
        if not path.lower().endswith((".yaml", ".yml")):
            if setup.names is None:
                setup.names = _listed_names(url, setup)
                setup.read.append(path)
            continue
        content = _yaml(url)
        if setup.names is None:
            setup.names = _yaml_names(url, content, setup)
        if not setup.splits and not path.startswith("../"):
            setup.splits = _yaml_splits(content)
        shape = content.get("kpt_shape")
        if isinstance(shape, list) and len(shape) == 2 and all(type(number) is int for number in shape):
            setup.key_points = (shape[0], shape[1])
        setup.read.append(path)
    for path in tree.with_suffix(".data"):
        content = dict(re.findall(r"^\s*(\w+)\s*=\s*(\S+)\s*$", read_text(tree.files[path].url), re.MULTILINE))
        if not setup.splits and content.keys() & {"train", "valid"}:
            setup.splits = _yaml_splits(content)
            setup.read.append(path)
    return setup


def _listed_names(url: str, setup: _Setup) -> dict[int, str]:
    """Names by the number of their line. Raises UserError where a name comes twice."""
    lines = read_text(url).splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    names = {number: clean(line) for number, line in enumerate(lines) if line.strip()}
    if len(names) < len(lines):
        blank = next(number for number in range(len(lines)) if number not in names)
        setup.notes.append(
            f"{url} has {len(lines) - len(names)} empty lines; class {blank} has no name, the others keep their numbers"
        )
    return _distinct(url, names)


def _distinct(url: str, names: dict[int, str]) -> dict[int, str]:
    for name, num in Counter(names.values()).items():
        if num > 1:
            numbers_of = [number for number, other in names.items() if other == name]
            raise UserError(
                f"{url}: the classes {', '.join(map(str, numbers_of))} are all called {name!r}; give each its own name"
            )
    return names


def _yaml(url: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(read_text(url))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{url} is not valid YAML: {str(error).splitlines()[0]}") from error
    if tree is not None and not isinstance(tree, dict):
        raise UserError(f"{url}: `names` must be a list of class names, but the file is no mapping")
    return tree or {}


def _yaml_names(url: str, tree: dict[str, Any], setup: _Setup) -> dict[int, str] | None:
    if "names" not in tree:
        setup.notes.append(f"{url} has no `names`: classes are named by their numbers")
        return None
    names: Any = tree["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    # only plain values are made text: aliases of aliases would grow without bound, and YAML reads a bare `no` as False
    if isinstance(names, dict) and all(
        _number(number) is not None and isinstance(name, str | int | float) and not isinstance(name, bool)
        for number, name in names.items()
    ):
        return _distinct(url, {_number(number): clean(str(name)) for number, name in names.items()})  # type: ignore[misc]
    raise UserError(
        f"{url}: `names` must be a list of class names, or numbers with names; put names such as no, yes, on and off "
        "into quotes"
    )


def _number(value: Any) -> int | None:
    if type(value) is int:
        return value
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else None


def _yaml_splits(tree: dict[str, Any]) -> dict[str, list[tuple[str, ...]]]:
    """Split -> the places that a yaml names for it, as they stand, those relative to `path` joined to it."""
    base = str(tree["path"]) if isinstance(tree.get("path"), str) else ""
    splits: dict[str, list[tuple[str, ...]]] = {}
    for key, split in _SPLIT_KEYS:
        value = tree.get(key)
        places = [
            place
            for place in (value if isinstance(value, list) else [value])
            if isinstance(place, str) and place.strip()
        ]
        if places:
            splits.setdefault(split, []).extend(_candidates(base, place.strip().replace("\\", "/")) for place in places)
    return splits


def _candidates(base: str, place: str) -> tuple[str, ...]:
    """The paths below the root that a place of a yaml may mean, the likeliest first: `path` and `../` are often those of
    another machine."""
    base = base.replace("\\", "/")
    whole = posixpath.normpath(posixpath.join(base, place)) if base else posixpath.normpath(place)
    ways = [whole, posixpath.normpath(place), re.sub(r"^(\.\./|/)+", "", posixpath.normpath(place))]
    parts = [part for part in whole.split("/") if part not in ("", ".", "..")]
    ways += ["/".join(parts[start:]) for start in range(len(parts))]
    return tuple(dict.fromkeys(ways))


def _split_by_lists(src: str, tree: Tree, setup: _Setup, listing: Listing) -> dict[str, str] | None:
    """Image -> split as a yaml or obj.data says; None where none does. Images of no split are left out and said."""
    if not setup.splits:
        return None
    found: dict[str, str] = {}
    missing: list[str] = []
    clashes: list[str] = []
    for split, places in setup.splits.items():
        for ways in places:
            images = _images_at(src, tree, ways, listing)
            if images is None:
                missing.append(f"{split} ({ways[1] if len(ways) > 1 else ways[0]})")
                continue
            for image in images:
                if found.setdefault(image, split) != split:
                    clashes.append(image)
    if not found:
        listing.notes.append(
            f"the places that {shown(setup.read)} names for the splits do not exist here: {shown(missing)}"
        )
        return None
    if missing:
        listing.notes.append(f"{shown(setup.read)} names places that do not exist here: {shown(missing)}")
    if clashes:
        first = min(clashes)
        listing.notes.append(
            f"{shown(setup.read)} names {len(set(clashes))} images for several splits; they are taken for the "
            f"first (first: {first})"
        )
    if others := [path for path in tree.pictures if path not in found]:
        listing.notes.append(
            f"{len(others)} images belong to no split of {shown(setup.read)} and are left out (first: {others[0]})"
        )
        listing.account.left.update(dict.fromkeys(others, "image of no split"))
    return found


def _images_at(src: str, tree: Tree, ways: Sequence[str], listing: Listing) -> list[str] | None:
    """The images below a folder or in a list of paths; None where there is neither."""
    for way in ways:
        if way.startswith("..") or posixpath.isabs(way):
            root = src.rstrip("/")
            if not posixpath.isabs(way) or not f"{way}/".startswith(f"{root}/"):
                continue
            way = way.removeprefix(root).strip("/")
        if way in tree.files and way.lower().endswith(".txt"):
            listing.account.read.add(way)
            lines = [line.strip().replace("\\", "/") for line in read_text(tree.files[way].url).splitlines()]
            images = [
                path for line in lines if line and (path := _listed(tree, line, posixpath.dirname(way))) is not None
            ]
            gone = sum(bool(line) for line in lines) - len(images)
            if gone:
                listing.notes.append(f"{gone} of the images that {way} lists do not exist here")
            return images
        if way == ".":
            return list(tree.pictures)
        images = [path for path in tree.pictures if path.startswith(f"{way}/")]
        if images:
            return images
    return None


def _listed(tree: Tree, line: str, folder: str) -> str | None:
    parts = [part for part in line.split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        end = "/".join(parts[start:])
        for path in (posixpath.normpath(posixpath.join(folder, end)), end):
            if path in tree.pictures:
                return path
    return None
