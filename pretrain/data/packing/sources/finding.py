"""The image that an annotation names: by a path or one URL, as people and programs write them.

What an annotation file holds is untrusted data. It may name a file that lies below the source, by a relative
or an absolute path, or one object of a named kind of store;
it may not make fsspec chain file systems, nor lead out of the folder.
"""

from __future__ import annotations

import os
import posixpath
import re
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cluster import storage
from cluster.secrets import masked
from pretrain.data.packing.sources.records import Listing
from pretrain.data.packing.sources.tree import Tree, stem_of
from pretrain.data.reading.manifest import IMAGE_SUFFIXES

PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https", "hf", "file")
MAX_PATH = 4096
ELSEWHERE = (
    "the images named beside it lie where their paths say, and there is none of its name: {path} is "
    "another that ends as it does; name it by its path if it is meant"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


class Leaves(ValueError):
    """A path that leads out of the folder."""


@dataclass(frozen=True, slots=True)
class Found:
    """An image: where its bytes are, its path as the annotation names it,
    and its path below the source where it is there.

    `base`: the folder that its name was relative to; None where it was found by the end of its path alone.
    """

    url: str
    name: str
    path: str | None
    base: str | None = ""


@dataclass
class Finder:
    """Finds images in a tree.

    Attributes:
        tree: of the source.
        bases: folders of the tree that relative paths may be relative to, the likeliest first.
        outside: folders outside of the tree for which the same holds; `--images` names one.
        shortened: how many were found by the end of their path only, and the first of them.
        by_other: how many were found without their ending, or in other letters (A.JPG for a.jpg).
        places: for all names with the same `bases`, how many were relative to which folder (None: found by
            their ends).
        unusual: (bases, folder) -> numbers of the files that were not relative to the likeliest folder.
    """

    tree: Tree
    bases: tuple[str, ...] = ("",)
    outside: tuple[str, ...] = ()
    shortened: list[str] = field(default_factory=list)
    backslashes: list[str] = field(default_factory=list)
    by_other: list[str] = field(default_factory=list)
    places: dict[tuple[str, ...], Counter[str | None]] = field(default_factory=dict)
    unusual: dict[tuple[tuple[str, ...], str | None], array[int]] = field(default_factory=dict)

    def find(self, name: Any, what: str = "the path", *, under: str = "") -> Found:
        """The image of this name; one that is not there is given the path where it should be.

        Args:
            name: as the annotation has it.
            what: names the field in errors.
            under: a folder of the tree that is looked into before the others (of the same split).

        Raises ValueError for what is neither a path nor one URL,
        and `Leaves` for a path that leads out of the source.
        """
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)  # ids that are numbers: 17 of 17.jpg
            if self._other(name, under) is None:
                raise ValueError(f"{what} holds no path, but {name}")
        if not isinstance(name, str) or not name.strip() or set(name) & set("\0\n\r"):
            raise ValueError(f"{what} holds no path, but {name!r}")
        name = name.strip()
        if len(name) > MAX_PATH:
            raise ValueError(f"{what} holds a path of {len(name)} characters")
        scheme, is_url, _ = name.partition("://")
        if "::" in name or (is_url and scheme.lower() not in PROTOCOLS):
            raise ValueError(
                f"{what} holds {masked(name)[:200]!r}, which is not a URL of {', '.join(PROTOCOLS)}"
            )
        if is_url and scheme.lower() != "file":
            return Found(name, masked(name), None)  # the name goes into the shards, where no key belongs
        if is_url:
            name = name[len("file://") :]
        elif _SCHEME.match(name) and not _DRIVE.match(name) and self._at(name, under) is None:
            raise ValueError(
                f"{what} holds {masked(name)[:200]!r}, which is neither a path nor a URL of "
                f"{', '.join(PROTOCOLS)}"
            )
        found = self._path(name, what, under)
        if found.path is not None:
            self.places.setdefault(self.bases, Counter())[found.base] += 1
            if found.base != (self.bases[0] if self.bases else ""):
                numbers = self.unusual.setdefault((self.bases, found.base), array("i"))
                numbers.append(self.tree.files.number(found.path))
        return found

    def finish(self, listing: Listing) -> None:
        """Says what was not taken as it stands, and sets aside what may be
        another image than the one that is named.

        Where most images of an annotation file lie in one folder, one that is missing there must not be
        taken for one with the same name somewhere else.
        """
        wrong: dict[str, str] = {}
        files = self.tree.files
        for (bases, base), numbers in self.unusual.items():
            usual = max(self.places[bases].items(), key=lambda one: (one[1], one[0] is not None))[0]
            if usual is not None and base != usual:
                wrong.update((files.url(number), files.path(number)) for number in numbers)
        set_aside_elsewhere(listing, wrong)
        listing.notes += self._notes()

    def _path(self, name: str, what: str, under: str) -> Found:
        if (at := self._at(name, under)) is not None:
            path, base = at
            return Found(self.tree.files[path].url, name, path, base)
        if posixpath.isabs(name) and storage.is_local(self.tree.root):
            below = os.path.relpath(name, os.path.abspath(storage.local_path(self.tree.root)))
            if below in self.tree.files:
                return Found(self.tree.files[below].url, name, below)
            if os.path.isfile(name):
                return Found(name, name, None)
        slashed = name
        if "\\" in name:
            slashed = re.sub(r"^[A-Za-z]:", "", name).replace("\\", "/")
            if (at := self._at(slashed, under)) is not None:
                path, base = at
                self.backslashes.append(name)
                return Found(self.tree.files[path].url, path, path, base)
        for folder in self.outside:
            inner = posixpath.normpath(slashed.lstrip("/"))
            if not inner.startswith("..") and storage.exists(url := storage.join(folder, inner)):
                return Found(url, inner, None)
        if ".." in slashed.split("/"):  # those within the tree were found above
            raise Leaves(
                f"{what} holds {name[:200]!r}, which leads out of {self.tree.root}; --images FOLDER may "
                "name where"
            )
        if (other := self._other(slashed, under)) is not None:
            path, found_in = other
            self.by_other.append(name)
            return Found(self.tree.files[path].url, path, path, found_in)
        if (end := self._by_end(slashed, under)) is not None:
            (self.backslashes if slashed != name else self.shortened).append(name)
            return Found(self.tree.files[end].url, end, end, None)
        if posixpath.isabs(name):
            return Found(name, name, None)
        missing = (
            self.outside[0] if self.outside else storage.join(self.tree.root, *filter(None, self.bases[:1]))
        )
        return Found(storage.join(missing, name), name, None)

    def _at(self, name: str, under: str) -> tuple[str, str] | None:
        """The path below the tree that a relative path leads to exactly,
        and the folder that it is relative to.
        """
        if posixpath.isabs(name):
            return None
        for base in (under, *self.bases) if under else self.bases:
            path = posixpath.normpath(posixpath.join(base, name))
            if path in self.tree.files:
                return path, base
        return None

    def _other(self, name: str, under: str) -> tuple[str, str | None] | None:
        """The one image of this path in other letters, or of this path and an ending;
        and the folder as `Found.base` has it.
        """
        if posixpath.isabs(name):
            return None
        for base in (under, *self.bases) if under else self.bases:
            path = posixpath.normpath(posixpath.join(base, name))
            found = self.tree.lower.last(path.lower())
            if found is not None and found in self.tree.images:
                return found, base
            endings = [path + ending for ending in IMAGE_SUFFIXES]
            here = [
                known for ending in endings if (known := self.tree.lower.last(ending.lower())) is not None
            ]
            if len(here) == 1 and here[0].startswith(path):
                return here[0], base
        if "/" not in name and not name.lower().endswith(IMAGE_SUFFIXES):
            found_by_stem = self.tree.by_stem.get(name)
            return (found_by_stem[0], None) if len(found_by_stem) == 1 else None
        return None

    def _by_end(self, name: str, under: str) -> str | None:
        """The one image whose path ends as the name does; as much of the end as finds any."""
        parts = [part for part in name.split("/") if part not in ("", ".", "..")]
        if not parts:
            return None
        alike = self.tree.by_name.get(parts[-1].lower())
        if not alike and not parts[-1].lower().endswith(IMAGE_SUFFIXES):
            alike = self.tree.by_stem.get(stem_of(parts[-1])) if stem_of(parts[-1]) == parts[-1] else []
            parts[-1] = posixpath.basename(alike[0]) if len(alike) == 1 else parts[-1]
        for start in range(len(parts)):
            end = "/".join(parts[start:]).lower()
            found = [path for path in alike if path.lower() == end or path.lower().endswith(f"/{end}")]
            if under and len(found) > 1:
                found = [path for path in found if path.startswith(f"{under}/")] or found
            if found:
                return found[0] if len(found) == 1 else None
        return None

    def _notes(self) -> list[str]:
        """What should be said of names that were not taken as they stand."""
        notes = []
        for names, how in (
            (self.shortened, "are not where their paths say and were found by the end of the path"),
            (self.backslashes, "have backslashes in their paths, read as slashes"),
            (self.by_other, "were found with other capitals or with an ending that the name lacks"),
        ):
            if names:
                notes.append(f"{len(names)} images {how} (first: {names[0]})")
        return notes


def set_aside_elsewhere(listing: Listing, paths: Mapping[str, str]) -> None:
    """Sets aside the records of images, URL -> path,
    that may be others of the names than those that are meant.
    """
    for index, record in enumerate(listing.records if paths else ()):
        if record.url in paths:
            listing.records[index] = replace(record, problem=ELSEWHERE.format(path=paths[record.url]))
