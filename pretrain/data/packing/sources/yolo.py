"""YOLO txt (https://docs.ultralytics.com/datasets/detect/): lines `class cx cy w h`, fractions of sides."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from typing import Any

from cluster.errors import UserError
from pretrain.data.packing.sources.evidence import Evidence, label_paths
from pretrain.data.packing.sources.finding import ELSEWHERE
from pretrain.data.packing.sources.image_record import Objects, Record
from pretrain.data.packing.sources.record_list import Records
from pretrain.data.packing.sources.records import Listing, around, as_sizes, numbers, read_small, unique
from pretrain.data.packing.sources.texts import decode_text, none_read, shown
from pretrain.data.packing.sources.tree import Tree, read_tree
from pretrain.data.packing.sources.yolo_setup import NAME_FILES, Setup, read_setup, split_by_lists

MAX_OVER = 1.01  # a fraction a hair above 1 is rounding; trainers take it so


def yolo_records(
    src: str, *, tree: Tree | None = None, boxes: str | None = None, leave_out: str | None = None
) -> Listing:
    """The images below `src`, with the boxes of the txt file beside each, or in `labels/` for `images/`.

    Class names come from a yaml, classes.txt or obj.names in `src`, or from data.yaml one folder up; without
    them classes are named by their numbers. An image without a txt file has no boxes, as YOLO has it. `src`
    may also be the yaml itself, which stands for its folder. Where a yaml (or obj.data) names folders or
    lists for training, validation and test, these are the splits, and other images are left out.

    A line of five numbers is a box, with a sixth its confidence, which is not read; `class x1 y1 x2 y2 x3 y3
    ...` is a polygon, of which the box around it is taken, as Ultralytics does; with `kpt_shape` in the yaml
    further numbers are key points. Lines that come twice count once. Numbers above 1 are no fractions: such
    lines are set aside.

    Args:
        src: folder, or the yaml.
        tree: of `src`, where it is known already.
        boxes: what the four numbers are: by default `cxcywh` in fractions; `xywh`, `xyxy` and `cxcywh` are
            pixels.
        leave_out: a folder to pass over.

    Raises:
        UserError: when no image has a txt file, the class names cannot be read, or most numbers are pixels.
    """
    named = ""
    if src.lower().endswith((".yaml", ".yml")):
        folder, _, named = src.rpartition("/")
        src, tree = folder or ".", None
    tree = tree or read_tree(src, leave_out=leave_out)
    evidence = Evidence(tree)
    setup = read_setup(src, tree, evidence, named)
    listing = Listing(Records(tree.files), notes=setup.notes, tree=tree)
    listing.account.read.update(path for path in setup.read if path in tree.files)
    split_of = split_by_lists(src, tree, setup, listing)
    images = {path: file for path, file in tree.images.pairs() if split_of is None or path in split_of}
    label_of, shared, far = _labels(images, tree)
    if not any(label_of.values()):
        raise UserError(
            f"no image in {src} has a .txt file beside it or in labels/; YOLO has one for each image"
        )
    num_files, named_by = sum(map(bool, label_of.values())), shown(setup.read, 2) or "no file"
    listing.told = f"YOLO: {num_files} txt files with boxes, class names of {named_by}"
    contents = read_small(tree.files[label] if label else None for label in label_of.values())
    reader = _Reader(setup, boxes, listing)
    problem: str | None
    for (path, label), content in zip(label_of.items(), contents, strict=True):
        objects, problem = Objects((), ()), None
        if label in shared:
            problem = f"{label} stands for {', '.join(shared[label])}; the source does not say which"
        elif path in far:
            problem = ELSEWHERE.format(path=path)
        elif label:
            objects, problem = reader.read(content, label)
        listing.records.append(
            Record(
                images[path].url,
                path,
                images[path].size_bytes,
                objects=objects,
                relative_boxes=boxes in (None, "fractions"),
                split=split_of[path] if split_of is not None else None,
                problem=problem,
            )
        )
    used = set(filter(None, label_of.values()))
    _note_unused(used, tree, evidence, listing, is_listed=split_of is not None)
    reader.finish(src)
    listing.records = unique(listing.records, src)
    if num := sum(label is None for label in label_of.values()):
        listing.notes.append(f"{num} images without a .txt file are packed as background, with no boxes")
    if setup.names is None:
        known = ", ".join(NAME_FILES)
        listing.notes.append(f"no class names in {src} ({known}): classes are named by their numbers")
    return listing


def _note_unused(
    used: set[str], tree: Tree, evidence: Evidence, listing: Listing, *, is_listed: bool
) -> None:
    """Accounts for the txt files: those that were read, and those without an image that is packed."""
    listing.account.read |= used
    lone = [
        path
        for path in tree.with_suffix(".txt")
        if path not in used
        and "labels" in path.split("/")[:-1]
        and posixpath.basename(path) not in NAME_FILES
        and (not is_listed or evidence.texts.get(path) is None)
    ]
    listing.account.left.update(
        {path: "labels of an image that is left out" for path in evidence.texts if path not in used}
    )
    listing.problems += [(path, "no image of its name") for path in lone]
    listing.account.left.update(dict.fromkeys(lone, "boxes without an image of their name"))


def _labels(
    images: dict[str, Any], tree: Tree
) -> tuple[dict[str, str | None], dict[str, list[str]], set[str]]:
    """Which txt file is whose.

    Returns:
        image -> its txt file or None; txt file -> images of one stem where it may be of several; images that
        do not lie where their txt file says, though most others do.
    """
    found: dict[str, str | None] = {}
    images_of: dict[str, list[str]] = {}
    for path in images:
        label = None
        for candidate in label_paths(path):
            known = tree.lower.last(f"{candidate}.txt".lower())
            if known is not None and posixpath.basename(known) not in NAME_FILES:
                label = known
                break
        found[path] = label
        if label is not None:
            images_of.setdefault(label, []).append(path)
    usual = {
        path
        for path, label in found.items()
        if label and f"{label_paths(path)[0]}.txt".lower() == label.lower()
    }
    if len(usual) * 2 > sum(map(bool, found.values())):
        far = {path for path, label in found.items() if label and path not in usual}
    else:
        far = set()
    return found, {label: paths for label, paths in images_of.items() if len(paths) > 1}, far


class _Reader:
    """Reads label files and counts what is in them."""

    def __init__(self, setup: Setup, boxes: str | None, listing: Listing) -> None:
        self._names, self._key_points = setup.names, setup.key_points
        self._meaning, self._listing = boxes, listing
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def read(self, data: bytes, location: str) -> tuple[Objects, str | None]:
        """(boxes of one file, why its image cannot be used or None)."""
        account, problems = self._listing.account, self._listing.problems
        try:
            text, _ = decode_text(data)
        except ValueError as error:
            problems.append((location, str(error)))
            account.annotations += 1
            return Objects((), ()), f"its labels {location} are {error}"
        found: dict[tuple[tuple[float, float, float, float], str], None] = {}
        bad: list[str] = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            account.annotations += 1
            try:
                pair = self._line(line)
            except ValueError as error:
                problems.append((f"{location}, line {number}", str(error)))
                bad.append(str(error))
                continue
            if pair in found:
                self._count("line that comes twice in its file, taken once", f"{location}, line {number}")
            found[pair] = None
        problem = None
        if bad and not found:
            problem = none_read(f"{len(bad)} boxes", bad[0])
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
        in_pixels = self._meaning not in (None, "fractions")
        key_points = self._key_points
        as_box = len(values) in (4, 5) or (
            key_points is not None and len(values) == 4 + key_points[0] * key_points[1]
        )
        if as_box:
            points = values[:4]
        elif len(values) >= 6 and len(values) % 2 == 0:
            points = values
        elif len(values) >= 7 and len(values) % 2:  # a polygon and a confidence
            points = values[:-1]
        else:
            raise ValueError(f"not `class cx cy w h`: {line[:60]!r}")
        if not in_pixels and max(points) > MAX_OVER:
            self._counts["pixels"] += 1
            raise ValueError(f"numbers above 1 are pixels, not fractions of the sides: {line[:60]!r}")
        if not in_pixels and min(points) < -0.01:
            raise ValueError(f"numbers below 0 are not fractions of the sides: {line[:60]!r}")
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
                f"{src}: the numbers of {self._counts['pixels']} of {listing.account.annotations} boxes are "
                f"above 1 (first: {listing.problems[0][0]}), so they are pixels, but YOLO uses fractions of "
                "the sides; --boxes cxcywh reads them as "
                "centre and size, xywh as left, top, width and height, xyxy as corners"
            )
        for kind, example in self._first.items():
            listing.account.count(kind, example, self._counts[kind], said=True)
            listing.notes.append(f"{self._counts[kind]} times a {kind} (first: {example})")
