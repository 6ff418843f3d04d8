"""What stands beside YOLO's label files: class names and splits in data.yaml, obj.data, classes.txt,
obj.names, lists.
"""

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
from pretrain.data.packing.sources.evidence import Evidence
from pretrain.data.packing.sources.records import Listing, read_text
from pretrain.data.packing.sources.splits import TEST, TRAIN, VALIDATION
from pretrain.data.packing.sources.texts import clean, shown
from pretrain.data.packing.sources.tree import Tree

NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
_SPLIT_KEYS = (
    ("train", TRAIN),
    ("val", VALIDATION),
    ("valid", VALIDATION),
    ("validation", VALIDATION),
    ("test", TEST),
)


@dataclass
class Setup:
    """What data.yaml, obj.data, classes.txt and the like say about a set.

    Attributes:
        names: class names by number; None where no file has any.
        splits: split -> folders, files and lists of images, as paths below the root.
        read: the files that were read for it.
        key_points: how many numbers of key points a line ends with, where the set has such.
    """

    names: dict[int, str] | None = None
    splits: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)
    key_points: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)


def read_setup(src: str, tree: Tree, evidence: Evidence, named: str) -> Setup:
    """What the files of class names and splits say; `named` is the yaml that the user gave."""
    setup = Setup()
    files = [named] if named else evidence.name_files
    urls = [
        (path, tree.files[path].url if path in tree.files else storage.join(src, path)) for path in files
    ]
    if not urls and "/" in src.rstrip("/"):  # one split of a set: its data.yaml lies a folder up
        above = src.rstrip("/").rpartition("/")[0]
        urls = [
            (f"../{name}", url)
            for name in NAME_FILES[:3]
            if storage.exists(url := storage.join(above, name))
        ]
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
        content = dict(
            re.findall(r"^\s*(\w+)\s*=\s*(\S+)\s*$", read_text(tree.files[path].url), re.MULTILINE)
        )
        if not setup.splits and content.keys() & {"train", "valid"}:
            setup.splits = _yaml_splits(content)
            setup.read.append(path)
    return setup


def _listed_names(url: str, setup: Setup) -> dict[int, str]:
    """Names by the number of their line. Raises UserError where a name comes twice."""
    lines = read_text(url).splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    names = {number: clean(line) for number, line in enumerate(lines) if line.strip()}
    if len(names) < len(lines):
        blank = next(number for number in range(len(lines)) if number not in names)
        setup.notes.append(
            f"{url} has {len(lines) - len(names)} empty lines; class {blank} has no name, the others keep "
            "their numbers"
        )
    return _distinct(url, names)


def _distinct(url: str, names: dict[int, str]) -> dict[int, str]:
    for name, num in Counter(names.values()).items():
        if num > 1:
            numbers_of = [number for number, other in names.items() if other == name]
            raise UserError(
                f"{url}: the classes {', '.join(map(str, numbers_of))} are all called {name!r}; give each "
                "its own name"
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


def _yaml_names(url: str, tree: dict[str, Any], setup: Setup) -> dict[int, str] | None:
    if "names" not in tree:
        setup.notes.append(f"{url} has no `names`: classes are named by their numbers")
        return None
    names: Any = tree["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    # only plain values are made text: aliases of aliases would grow without bound,
    # and YAML reads a bare `no` as False
    if isinstance(names, dict) and all(
        _number(number) is not None and isinstance(name, str | int | float) and not isinstance(name, bool)
        for number, name in names.items()
    ):
        return _distinct(url, {_number(number): clean(str(name)) for number, name in names.items()})  # type: ignore[misc]
    raise UserError(
        f"{url}: `names` must be a list of class names, or numbers with names; put names such as no, yes, "
        "on and off into quotes"
    )


def _number(value: Any) -> int | None:
    if type(value) is int:
        return value
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else None


def _yaml_splits(tree: dict[str, Any]) -> dict[str, list[tuple[str, ...]]]:
    """Split -> the entries that a yaml names for it, as they stand,
    those relative to `path` joined to it.
    """
    base = str(tree["path"]) if isinstance(tree.get("path"), str) else ""
    splits: dict[str, list[tuple[str, ...]]] = {}
    for key, split in _SPLIT_KEYS:
        value = tree.get(key)
        entries = [
            entry
            for entry in (value if isinstance(value, list) else [value])
            if isinstance(entry, str) and entry.strip()
        ]
        if entries:
            splits.setdefault(split, []).extend(
                _candidates(base, entry.strip().replace("\\", "/")) for entry in entries
            )
    return splits


def _candidates(base: str, entry: str) -> tuple[str, ...]:
    """The paths below the root that a entry of a yaml may mean, the likeliest first: `path` and `../` are
    often those of another machine."""
    base = base.replace("\\", "/")
    whole = posixpath.normpath(posixpath.join(base, entry)) if base else posixpath.normpath(entry)
    ways = [whole, posixpath.normpath(entry), re.sub(r"^(\.\./|/)+", "", posixpath.normpath(entry))]
    parts = [part for part in whole.split("/") if part not in ("", ".", "..")]
    ways += ["/".join(parts[start:]) for start in range(len(parts))]
    return tuple(dict.fromkeys(ways))


def split_by_lists(src: str, tree: Tree, setup: Setup, listing: Listing) -> dict[str, str] | None:
    """Image -> split as a yaml or obj.data says; None where none does.
    Images of no split are left out and said.
    """
    if not setup.splits:
        return None
    found: dict[str, str] = {}
    missing: list[str] = []
    clashes: list[str] = []
    for split, entries in setup.splits.items():
        for ways in entries:
            images = _images_at(src, tree, ways, listing)
            if images is None:
                missing.append(f"{split} ({ways[1] if len(ways) > 1 else ways[0]})")
                continue
            for image in images:
                if found.setdefault(image, split) != split:
                    clashes.append(image)
    if not found:
        listing.notes.append(
            f"the entries that {shown(setup.read)} names for the splits do not exist here: {shown(missing)}"
        )
        return None
    if missing:
        listing.notes.append(f"{shown(setup.read)} names entries that do not exist here: {shown(missing)}")
    if clashes:
        first = min(clashes)
        listing.notes.append(
            f"{shown(setup.read)} names {len(set(clashes))} images for several splits; they are taken for "
            f"the first (first: {first})"
        )
    if others := [path for path in tree.images if path not in found]:
        listing.notes.append(
            f"{len(others)} images belong to no split of {shown(setup.read)} and are left out (first: "
            f"{others[0]})"
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
                path
                for line in lines
                if line and (path := _listed(tree, line, posixpath.dirname(way))) is not None
            ]
            gone = sum(bool(line) for line in lines) - len(images)
            if gone:
                listing.notes.append(f"{gone} of the images that {way} lists do not exist here")
            return images
        if way == ".":
            return list(tree.images)
        images = [path for path in tree.images if path.startswith(f"{way}/")]
        if images:
            return images
    return None


def _listed(tree: Tree, line: str, folder: str) -> str | None:
    parts = [part for part in line.split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        end = "/".join(parts[start:])
        for path in (posixpath.normpath(posixpath.join(folder, end)), end):
            if path in tree.images:
                return path
    return None
