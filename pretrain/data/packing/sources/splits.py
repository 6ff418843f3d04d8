"""Splits that a source has of its own: which folders and words say what an image is for."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
_WORDS = {
    **dict.fromkeys(("train", "training", "trainset"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "valset"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "testset"), TEST),
}
_DECORATED = re.compile(
    r"(?:coco|images?|imgs?|set|data|labels?)?[-_ ]?([a-z]+?)[-_ ]?"
    r"(?:set|data|images?|imgs?|images|split|folder|(?:19|20)\d\d)?"
)


def split_named(word: str) -> str | None:
    """The split that a folder's name or a cell's text names: `train2017`, `valid`, `images_test`;
    None for another word.
    """
    word = word.strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    match = _DECORATED.fullmatch(word)
    return _WORDS.get(match.group(1)) if match else None


def split_in_name(name: str) -> str | None:
    """The one split that a file's name speaks of: `instances_train2017.json`, `val-00003.tar`;
    None for none or several.
    """
    stem = posixpath.basename(name).partition(".")[0]
    found = {split for word in re.split(r"[-_ ]", stem) if (split := split_named(word))}
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class Layout:
    """Where in the paths of a source the split stands.

    Attributes:
        level: number of the folder in a path that names the split; None where the paths name none.
        names: folder -> split.
        others: folders beside those, which name no split.
    """

    level: int | None
    names: dict[str, str]
    others: tuple[str, ...] = ()

    def split_of(self, path: str) -> str | None:
        """The split of a file by its path."""
        if self.level is None:
            return None
        parts = path.split("/")
        return self.names.get(parts[self.level]) if len(parts) > self.level + 1 else None


NO_SPLITS = Layout(None, {})


def layout_of(paths: Iterable[str]) -> Layout:
    """The splits that the folders of these files name: on the first level on which folders part.

    Folders all name splits (`train/ val/`), or at least two do, training among them, with others beside
    (`others`): then it is for the user to say what these are.
    A single folder that names a split is one as well.
    """
    num_in = Counter(posixpath.dirname(path) for path in paths)
    folders = {tuple(folder.split("/")) if folder else (): num for folder, num in num_in.items()}
    total = num_in.total()
    level = 0
    while True:
        words = {parts[level] for parts in folders if len(parts) > level}
        if not words:
            return NO_SPLITS
        names = {word: split for word in words if (split := split_named(word))}
        others = sorted(words - names.keys())
        num_direct = sum(num for parts, num in folders.items() if len(parts) <= level)
        if names and not others:  # a train/ beside many images is a folder like others
            return NO_SPLITS if num_direct * 4 > total else Layout(level, names)
        if len(set(names.values())) >= 2 and TRAIN in names.values():
            return Layout(level, names, tuple(others))
        if names or len(words) > 1 or num_direct * 4 > total:
            return NO_SPLITS
        level += 1
