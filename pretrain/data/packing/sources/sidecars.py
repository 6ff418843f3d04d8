"""Texts beside images: 1.jpg with 1.txt, .caption, .json, .cls ...,
as img2dataset and captioning programs write them.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import UserError
from pretrain.data.packing.sources.evidence import Evidence
from pretrain.data.packing.sources.image_record import Objects, Record
from pretrain.data.packing.sources.record_list import Records
from pretrain.data.packing.sources.records import Listing, objects_of, read_small, unique
from pretrain.data.packing.sources.texts import captions_in, decode_text, label_of, variants
from pretrain.data.packing.sources.tree import Tree, read_tree

LABEL_KEYS = ("label", "cls", "class", "category")
LABELS_KEYS = ("labels", "tags")
CAPTION_KEYS = ("caption", "captions", "text")
# the part of a name behind its stem -> what the file holds
CAPTION_KINDS = ("txt", "text", "caption", "captions", "caption.txt")
LABEL_KINDS = ("cls", "label", "cls.txt", "label.txt", "class", "class.txt")
LABELS_KINDS = ("labels", "labels.txt", "tags", "tags.txt")
JSON_KINDS = ("json", "labels.json", "caption.json", "captions.json", "label.json", "meta.json")


@dataclass
class Said:
    """What the files beside one image say about it."""

    label: str | None = None
    labels: tuple[str, ...] | None = None
    objects: Objects | None = None
    captions: list[str] | None = None
    num_said: int = 0
    problems: list[str] = field(default_factory=list)
    num_blank: int = 0
    bad_boxes: bool = False

    def take(self, kind: str, data: bytes) -> bool:
        """Reads the content of a file by the part of its name behind the stem;
        whether such files are read at all.
        """
        kind = kind.lower()
        if kind not in CAPTION_KINDS + LABEL_KINDS + LABELS_KINDS + JSON_KINDS:
            return False
        self.num_said += 1
        try:
            text = decode_text(data)[0].strip()
        except ValueError as error:
            self.problems.append(str(error))
            return True
        if kind in JSON_KINDS:
            self._take_json(kind, text)
        elif kind in LABEL_KINDS:
            self.label = label_of(text)
        elif kind in LABELS_KINDS:
            words = text.replace("|", ",").replace("\n", ",").split(",")
            self.labels = tuple(
                dict.fromkeys(name for word in words if (name := label_of(word)) is not None)
            )
        else:
            self._add_captions(text)
        return True

    def _add_captions(self, value: Any) -> None:
        texts, bad = captions_in(value)
        self.captions = self.captions or []
        self.num_blank += not texts and not bad
        if bad:
            self.problems.append(f"{str(value)[:60]!r} is not a caption")
        self.captions += [text for text in texts if text not in self.captions]

    def _take_json(self, kind: str, text: str) -> None:
        try:
            tree: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            self.problems.append(f"not usable as JSON: {error}")
            return
        if isinstance(tree, list | str) and kind != "json":
            tree = {kind.partition(".")[0]: tree}
        if not isinstance(tree, dict):
            return
        try:
            objects = objects_of(tree.get("objects"))
            self.objects = objects if objects is not None else self.objects
        except ValueError as error:
            self.problems.append(f"not usable as JSON: {error}")
            self.bad_boxes = True
        label = next((tree[key] for key in LABEL_KEYS if isinstance(tree.get(key), int | str)), None)
        if label is not None and self.label is None:
            self.label = label_of(label)
        labels = next((tree[key] for key in LABELS_KEYS if isinstance(tree.get(key), list)), None)
        if labels is not None:
            found = (label_of(one) for one in labels if isinstance(one, int | str))
            self.labels = tuple(dict.fromkeys(name for name in found if name is not None))
        for key in CAPTION_KEYS:
            if tree.get(key) is not None:
                self._add_captions(tree[key])

    @property
    def problem(self) -> str | None:
        """Why the image cannot be packed: it has boxes that cannot be
        read and would pass for one without.
        """
        return (
            f"its boxes cannot be read ({self.problems[0]})"
            if self.bad_boxes and self.objects is None
            else None
        )


def sidecar_records(src: str, *, tree: Tree | None = None, leave_out: str | None = None) -> Listing:
    """The images below a folder, with what the files of the same stem beside them say:
    captions, labels, objects.

    `.txt`, `.text`, `.caption` and `.caption.txt` are captions, `.cls` and `.label` a label, `.json` may
    have a label, labels, a caption or captions and objects; equal captions of one image count once.

    Raises:
        UserError: when there is no such file.
    """
    tree = tree or read_tree(src, leave_out=leave_out)
    evidence = Evidence(tree)
    files = evidence.captions_beside
    beside: dict[str, list[tuple[str, str]]] = {}
    suffixes = (".txt", ".json", ".caption", ".captions", ".text", ".cls", ".label", ".labels", ".tags")
    for path in tree.with_suffix(*suffixes):
        image = evidence.image_of(path)
        if image is not None:
            stem = posixpath.basename(path).partition(".")[0]
            own = posixpath.splitext(posixpath.basename(image))[0]
            kind = posixpath.basename(path)[
                len(own if posixpath.basename(path).startswith(f"{own}.") else stem) + 1 :
            ]
            beside.setdefault(image, []).append((path, kind))
    if not beside:
        raise UserError(
            f"no file in {src} with a caption, a label or a .json lies beside an image of its name"
        )
    listing = Listing(
        Records(tree.files),
        told=f"images with texts beside them: {len(files)} files (first: {files[0] if files else ''})",
        tree=tree,
    )
    listing.account.unlisted = "image without a text beside it"
    order = list(tree.images)
    listed = [(image, path, kind) for image in order for path, kind in beside.get(image, ())]
    contents = read_small(tree.files[path] for _, path, _ in listed)
    said: dict[str, Said] = {}
    for (image, path, kind), data in zip(listed, contents, strict=True):
        one = said.setdefault(image, Said())
        num = len(one.problems)
        if one.take(kind, data):
            listing.account.read.add(path)
            listing.account.annotations += 1
        listing.problems += [(path, problem) for problem in one.problems[num:]]
    add_records(listing, {image: said.get(image) for image in order}, tree)
    listing.records = unique(listing.records, src)
    return listing


def add_records(listing: Listing, said: dict[str, Said | None], tree: Tree) -> None:
    """Adds a record for each image with what is said of it, and notes on the images of which nothing is."""
    with_captions = any(one is not None and one.captions is not None for one in said.values())
    counts: Counter[str] = Counter()
    for image, one in said.items():
        file, one = tree.images[image], one or Said()
        for label in (one.label,) if one.label is not None else one.labels or ():
            counts[label] += 1
        if one.num_blank:
            listing.account.count("blank caption, left out", image, one.num_blank)
        listing.records.append(
            Record(
                file.url,
                image,
                file.size_bytes,
                label=one.label,
                labels=one.labels,
                objects=one.objects,
                captions=tuple(one.captions or ()) if with_captions else None,
                problem=one.problem,
            )
        )
    num_without = sum(one is None or not one.num_said for one in said.values())
    if num_without:
        listing.notes.append(f"{num_without} images have no text beside them")
    listing.notes += variants(counts)
