"""The account of an import: what became of every file of the source,
and what was left out of annotation files.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.secrets import masked
from pretrain.data.packing.sources import Listing, Tree
from pretrain.data.packing.sources.file_table import FileTable
from pretrain.data.packing.sources.tree import HIDDEN, OTHER_IMAGES

if TYPE_CHECKING:
    from pretrain.data.packing.import_taking import Tally

PACKED, ASIDE, DUPLICATE = "packed", "set aside, see _quarantine.jsonl", "equal to another image, left out"
READ, PASSED_OVER = "read as annotation", "passed over"
OTHER, ARCHIVE = "file of another kind", "archive"
MAX_ENDINGS = 12  # rows of files by their endings; the rest is one row
ARCHIVES = (".zip", ".gz", ".tgz", ".7z", ".rar", ".xz", ".bz2", ".tar")


@dataclass
class Ledger:
    """Rows (kind, count, example) of files, which sum to all files of the source, and of other things."""

    files: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, example: str, num: int = 1, *, is_file: bool = True) -> None:
        """Counts files, or other things."""
        if num:
            (self.files if is_file else self.others)[kind] += num
            self.examples.setdefault(kind, example)

    @property
    def num_files(self) -> int:
        """All files of the source."""
        return self.files.total()

    def notes(self) -> list[str]:
        """What should be said of the files that were passed over;
        hidden ones and those of the operating system are counted.
        """
        passed = {
            kind.removeprefix(f"{PASSED_OVER}: "): num
            for kind, num in self.files.items()
            if PASSED_OVER in kind
        }
        others = {kind: num for kind, num in passed.items() if kind.startswith((OTHER, ARCHIVE))}
        notes = [
            f"{num} x {kind}: not packed (first: {self.examples[f'{PASSED_OVER}: {kind}']})"
            for kind, num in passed.items()
            if kind not in others and not kind.startswith(HIDDEN)
        ]
        if others:
            told = ", ".join(f"{num} x {kind}" for kind, num in others.items())
            notes.append(
                f"not read: {told} (first: {self.examples[f'{PASSED_OVER}: {next(iter(others))}']})"
            )
        return notes

    def as_json(self) -> dict[str, Any]:
        """For _import.json: the rows, and what those of files sum to."""
        return {
            "files": self.num_files,
            "rows": [
                {"of": of, "kind": kind, "count": num, "example": masked(self.examples[kind])}
                for of, counts in (("files", self.files), ("other", self.others))
                for kind, num in counts.items()
            ],
        }


@dataclass(frozen=True)
class Files:
    """The files of a source, known before the first image is packed;
    the listing of all files is not needed any more then.

    Attributes:
        num_images: those that are images to pack.
        left: (path, fate) of each of the others.
        empty_folders: without any file in or below them.
        listed: those that were listed with the source.
        first: path of an image of the source.
    """

    num_images: int
    left: list[tuple[str, str]]
    empty_folders: list[str]
    listed: FileTable
    first: str

    def holds(self, url: str) -> bool:
        """Whether the file of an image to pack was listed with the source."""
        return self.listed.number_of_url(url) >= 0


def files_of(listing: Listing) -> Files:
    """The files of a listing by what they are for."""
    account, tree = listing.account, listing.tree
    first = listing.records[0].path
    if tree is None or listing.kind == "tar":  # the members of tars are images, not the files
        left = [] if tree is None else list(_fates(listing, tree, bytearray(len(tree.files))))
        known = {path for path, _ in left}
        left += [(path, READ) for path in sorted(account.read - known)]
        return Files(0, left, tree.empty_folders if tree else [], FileTable(), first)
    used = listing.records.files_used()
    left = list(_fates(listing, tree, used))
    return Files(used.count(1), left, tree.empty_folders, tree.files, first)


def make_ledger(listing: Listing, files: Files, tally: Tally) -> Ledger:
    """The ledger of an import: listing and files of the source, and what became of its records."""
    ledger, account, examples = Ledger(), listing.account, tally.examples
    here = {
        PACKED: files.num_images - tally.aside_here - tally.left_out_here,
        ASIDE: tally.aside_here,
        DUPLICATE: tally.left_out_here,
    }
    everywhere = {PACKED: tally.images, ASIDE: tally.aside, DUPLICATE: tally.duplicates + tally.leaks}
    for kind, num in here.items():
        ledger.add(f"image {kind}", examples.get(kind, files.first), num)
    for kind, num in everywhere.items():
        where = "sample of a tar" if listing.kind == "tar" else "image elsewhere"
        ledger.add(f"{where} {kind}", examples.get(kind, files.first), num - here[kind], is_file=False)
    endings = Counter(posixpath.splitext(path)[1].lower() for path, fate in files.left if fate == READ)
    named = {ending for ending, _ in endings.most_common(MAX_ENDINGS)}
    for path, fate in files.left:
        if fate == READ:
            ending = posixpath.splitext(path)[1].lower()
            ledger.add(f"{READ} ({'*' + ending if ending in named else 'others'})", path)
        else:
            ledger.add(f"{PASSED_OVER}: {fate}", path)
    for folder in files.empty_folders:
        ledger.add("folder without any file", folder, is_file=False)
    for kind, num in sorted(account.counts.items()):
        ledger.add(kind, account.examples[kind], num, is_file=False)
    if listing.problems:
        ledger.add(
            "annotation set aside, see _quarantine.jsonl",
            listing.problems[0][0],
            len(listing.problems),
            is_file=False,
        )
    for kind, num in sorted(tally.facts.items()):
        ledger.add(kind, examples.get(kind, ""), num, is_file=False)
    return ledger


def _fates(listing: Listing, tree: Tree, used: bytearray) -> Iterator[tuple[str, str]]:
    """(path, fate) of each file that is no image of a record.
    `used`: of each file of the tree, by number, whether it is one.
    """
    account = listing.account
    for path in sorted(account.read - tree.files.keys()):
        yield path, READ
    for number, path in enumerate(tree.files):
        if path in account.read:
            yield path, READ
        elif used[number]:
            continue
        elif path in account.left:
            yield path, account.left[path]
        elif tree.is_image[number]:
            yield path, account.unlisted
        else:
            ending = posixpath.splitext(path)[1].lower()
            if ending in OTHER_IMAGES:
                yield path, f"image of a format that is not read ({ending})"
            elif ending in ARCHIVES:
                yield path, f"{ARCHIVE}, which is not unpacked ({ending})"
            else:
                yield path, f"{OTHER} ({ending or 'no ending'})"
    yield from sorted(tree.left.items())


def files_jsonl(fates: list[tuple[str, str]]) -> bytes:
    """Lines {path, fate} of `_files.jsonl`; empty where no file was passed over."""
    if all(fate == READ for _, fate in fates):
        return b""
    lines = (
        json.dumps({"path": masked(path), "fate": fate if fate == READ else f"{PASSED_OVER}: {fate}"})
        for path, fate in fates
    )
    return "".join(f"{line}\n" for line in lines).encode()


def as_table(ledger: dict[str, Any]) -> list[str]:
    """The rows of a ledger in columns for the terminal."""
    rows = ledger["rows"]
    if not rows:
        return []
    wide = max(len(str(row["count"])) for row in rows)
    kinds = min(70, max(len(row["kind"]) for row in rows))
    lines = [f"account of {ledger['files']} files:"]
    for of, title in (("files", ""), ("other", "and of what is in them:")):
        part = [row for row in rows if row["of"] == of]
        lines += [title] * bool(part and title)
        lines += [
            f"  {row['count']:>{wide}}  {row['kind']:<{kinds}}  {row['example'][:100]}".rstrip()
            for row in part
        ]
    return lines
