"""What the files of a source look like: which of them are annotations, of which kind.
Few are read, and of those the heads.
"""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cluster import storage
from cluster.storage import FileInfo
from pretrain.data.packing.sources.texts import decode_text
from pretrain.data.packing.sources.tree import Tree, head_of, stem_of

MAX_PEEKED = 40  # files of one kind
WHOLE_JSON_BYTES, HEAD_BYTES = 2**20, 2**18
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
CAPTION_SUFFIXES = (".txt", ".caption", ".text", ".caption.txt", ".cls", ".label")
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
_KEY = re.compile(rb'"(images|annotations|categories|shapes|imagePath)"\s*:')
_NUMBERS = re.compile(
    r"\s*[+-]?[\d.]+(?:[eE][+-]?\d+)?(?:[\s,;]+[+-]?(?:\d+\.?\d*|\.\d+|nan|inf)(?:[eE][+-]?\d+)?){4,}\s*"
)


@dataclass
class Evidence:
    """The annotation files of a tree by what they look like.
    Everything is found when it is asked for, and once.
    """

    tree: Tree

    @cached_property
    def json_kinds(self) -> dict[str, str]:
        """path -> `coco`, `labelme`, `list`, `caption` or `other`, of json files;
        a few beside images tell for all.
        """
        kinds: dict[str, str] = {}
        beside: list[str] = []
        for path in self.tree.with_suffix(".json"):
            if path.lower().endswith(".coco.json"):
                kinds[path] = "coco"
            elif self.image_of(path) is not None:
                beside.append(path)
            elif len(kinds) < MAX_PEEKED:
                kinds[path] = json_kind(self.tree.files[path])
            else:
                kinds[path] = "other"
        looks = [json_kind(self.tree.files[path]) for path in spread(beside, MAX_PEEKED)]
        common = max(sorted(set(looks)), key=looks.count) if looks else "other"
        single = {
            path: look
            for path, look in zip(spread(beside, MAX_PEEKED), looks, strict=True)
            if look in ("coco", "list")
        }
        return kinds | dict.fromkeys(beside, common) | single

    def json_files(self, kind: str) -> list[str]:
        """Sorted paths of the json files of a kind."""
        return sorted(path for path, found in self.json_kinds.items() if found == kind)

    @cached_property
    def xml_kinds(self) -> dict[str, str]:
        """path -> `voc`, `cvat` or `other` of xml files; a damaged one beside an image is taken for VOC."""
        kinds = {}
        peeked = 0
        for path in self.tree.with_suffix(".xml"):
            beside = stem_of(path) in self.tree.by_stem
            if beside and peeked >= MAX_PEEKED:
                kinds[path] = "voc"
                continue
            peeked += 1
            text = _text(head_of(self.tree.files[path], 4096))
            root = re.search(
                r"<([A-Za-z_][\w:.-]*)", re.sub(r"<[?!][^>]*>?|<!--.*?-->", "", text, flags=re.DOTALL)
            )
            name = root.group(1) if root else ""
            kinds[path] = {"annotation": "voc", "annotations": "cvat"}.get(
                name, "voc" if beside else "other"
            )
        return kinds

    def xml_files(self, kind: str) -> list[str]:
        """Sorted paths of the xml files of a kind."""
        return sorted(path for path, found in self.xml_kinds.items() if found == kind)

    @cached_property
    def texts(self) -> dict[str, str]:
        """path of a text file -> the image it stands for, in YOLO's usual paths:
        beside it, or in labels/ for images/.
        """
        found: dict[str, str] = {}
        if not self.tree.with_suffix(".txt"):
            return found
        for image in self.tree.images:
            for candidate in label_paths(image):
                if (path := self.tree.lower.last(f"{candidate}.txt".lower())) and posixpath.basename(
                    path
                ) not in NAME_FILES:
                    found.setdefault(path, image)
                    break
        return found

    @cached_property
    def texts_are(self) -> str:
        """`boxes`, `captions`, or nothing where there are none beside images or all are empty."""
        kinds = [text_kind(self.tree.files[path]) for path in spread(sorted(self.texts), MAX_PEEKED)]
        if not kinds:
            return ""
        if any("labels" in path.split("/")[:-1] for path in self.texts):
            return "boxes"
        num = {kind: kinds.count(kind) for kind in ("boxes", "captions")}
        return "" if not any(num.values()) else "boxes" if num["boxes"] >= num["captions"] else "captions"

    @cached_property
    def name_files(self) -> list[str]:
        """Files with the class names of YOLO, the nearest to the root first."""
        found = [
            path
            for path in self.tree.others()
            if posixpath.basename(path) in NAME_FILES or path.endswith(".names")
        ]
        yamls = [path for path in self.tree.with_suffix(".yaml", ".yml") if self._has_names(path)]
        return sorted(yamls, key=_depth) + sorted(found, key=_depth)

    def _has_names(self, path: str) -> bool:
        if posixpath.basename(path) in ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml"):
            return True
        text = _text(head_of(self.tree.files[path], HEAD_BYTES))
        return bool(re.search(r"^['\"]?names['\"]?\s*:", text, re.MULTILINE)) and bool(
            re.search(r"^['\"]?(train|val|nc|path)['\"]?\s*:", text, re.MULTILINE)
        )

    @cached_property
    def tables(self) -> list[str]:
        """Sorted paths of files that may be tables."""
        found = self.tree.with_suffix(*TABLE_SUFFIXES)
        return sorted(
            found
            + [path for path in self.tree.with_suffix(".parquet", ".pq") if stem_of(path) == "metadata"]
        )

    @cached_property
    def captions_beside(self) -> list[str]:
        """Files with texts of single images: .txt that are no boxes, .caption, .text,
        .json with a caption, ...
        """
        found = sorted(self.texts) if self.texts_are == "captions" else []
        suffixes = tuple(suffix for suffix in CAPTION_SUFFIXES if suffix != ".txt")
        found += [path for path in self.tree.with_suffix(*suffixes) if self.image_of(path) is not None]
        return sorted({*found, *self.json_files("caption")})

    def image_of(self, path: str) -> str | None:
        """The image that a file of the same folder and stem stands for."""
        folder, name = posixpath.split(path)
        for stem in dict.fromkeys((name.partition(".")[0], stem_of(name))):
            for image in self.tree.by_stem.get(stem):
                if posixpath.dirname(image) == folder:
                    return image
        return None


def label_paths(image: str) -> list[str]:
    """Where the labels of an image may be, without the ending: in labels/ for images/ (the last such folder)
    as YOLO has it, beside it, or in a folder labels/ within its own, next to its own,
    or with the same folders below it.
    """
    *folders, name = posixpath.splitext(image)[0].split("/")
    lower = [folder.lower() for folder in folders]
    paths = ["/".join([*folders, name])]
    if "images" in lower:
        index = len(lower) - 1 - lower[::-1].index("images")
        paths.insert(0, "/".join([*folders[:index], "labels", *folders[index + 1 :], name]))
    elif folders:
        others = ([*folders, "labels"], [*folders[:-1], "labels"], ["labels", *folders])
        paths += ["/".join([*other, name]) for other in others]
    return paths


def json_kind(file: FileInfo) -> str:
    """`coco`, `labelme`, `list` (of objects), `caption` (an object about one image) or `other`,
    by a file's head.
    """
    if file.size_bytes > WHOLE_JSON_BYTES:
        head = head_of(file, HEAD_BYTES)
        keys = {match.decode() for match in _KEY.findall(head)}
        if head.lstrip().startswith(b"["):
            return "list"
        return "labelme" if keys & {"shapes", "imagePath"} else "coco" if keys else _coco_at_end(file)
    try:
        tree: Any = json.loads(_text(head_of(file, WHOLE_JSON_BYTES)))
    except (ValueError, RecursionError):
        return "other"
    if isinstance(tree, list):
        return "list" if tree and all(isinstance(item, dict) for item in tree[:20]) else "other"
    if not isinstance(tree, dict):
        return "other"
    if isinstance(tree.get("images"), list) and ("annotations" in tree or "categories" in tree):
        return "coco"
    if isinstance(tree.get("shapes"), list):
        return "labelme"
    return (
        "caption"
        if tree.keys() & {"caption", "captions", "text", "label", "labels", "objects", "class"}
        else "other"
    )


def _coco_at_end(file: FileInfo) -> str:
    tail = bytes(storage.read_range(file, max(0, file.size_bytes - HEAD_BYTES), file.size_bytes))
    return "coco" if _KEY.search(tail) else "other"


def text_kind(file: FileInfo) -> str:
    """`boxes` for lines of a class and numbers, `captions` for other words, nothing for an empty file."""
    lines = [line for line in _text(head_of(file, 8192)).splitlines() if line.strip()]
    if not lines:
        return ""
    whole = lines[:-1] if len(lines) > 1 and file.size_bytes > 8192 else lines
    return "boxes" if any(_NUMBERS.fullmatch(line) for line in whole) else "captions"


def spread(items: list[str], max_items: int) -> list[str]:
    """At most so many of the items, spread over all."""
    step = max(1, -(-len(items) // max_items))
    return items[::step]


def _text(data: bytes) -> str:
    try:
        return decode_text(data)[0]
    except ValueError:
        return data.decode("utf-8", "ignore")


def _depth(path: str) -> tuple[int, str]:
    return path.count("/"), path
