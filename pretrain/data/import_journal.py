"""How far an import has come, kept beside its shards so that it can continue after it was cut off."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from cluster import storage
from cluster.errors import UserError

UNFINISHED, JOURNAL = ".unfinished", "journal.json"
DIGESTS = re.compile(r"digests-\d{5,}\.jsonl")
OWN_NAMES = re.compile(
    r"shard-\d{5,}\.parquet|_import\.json|_quarantine\.jsonl|journal\.json|digests-\d{5,}\.jsonl|\.tmp-[0-9a-z_]{8,32}"
)
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Reached:
    """Records of a split that lie in whole shards (or were set aside), and how many shards these are."""

    records_done: int = 0
    shards_done: int = 0


@dataclass
class Journal:
    """The unfinished import in DEST/.unfinished.

    Attributes:
        dest: where the shards will be.
        options: what the shards depend on.
        state: the tally at the last whole shard; empty for a new import.
    """

    dest: str
    options: dict[str, Any]
    state: dict[str, Any] = field(default_factory=dict)
    _reached: dict[str, Reached] = field(default_factory=dict)
    _first: dict[str, tuple[str, str]] = field(default_factory=dict)  # digest of an image -> its path and label
    _unwritten: list[str] = field(default_factory=list)  # digests since the last whole shard
    _num_digest_files: int = 0

    @property
    def folder(self) -> str:
        """Where shards are written until all are complete; its name hides it from readers."""
        return storage.join(self.dest, UNFINISHED)

    @classmethod
    def open(cls, dest: str, options: dict[str, Any], *, overwrite: bool) -> Journal:
        """The journal of a cut-off import with the same options, or a new one in an empty DEST.

        Raises UserError when DEST holds something else.
        """
        stored = None if overwrite else cls.stored(dest, options)
        if stored is not None:
            journal = cls(dest, options, stored["state"], {k: Reached(*v) for k, v in stored["reached"].items()})
            for name in filter(DIGESTS.fullmatch, storage.names_in(journal.folder)):
                for line in storage.read_bytes(storage.join(journal.folder, name)).decode().splitlines():
                    digest, first, label = json.loads(line)
                    journal._first[digest] = (first, label)
                journal._num_digest_files += 1
            return journal
        make_room(dest, overwrite=overwrite)
        journal = cls(dest, options)
        journal._write()
        return journal

    @staticmethod
    def stored(dest: str, options: dict[str, Any]) -> dict[str, Any] | None:
        """The journal that lies in DEST, or None. Raises UserError when it was begun with other options."""
        path = storage.join(dest, UNFINISHED, JOURNAL)
        if not storage.exists(path):
            return None
        stored: dict[str, Any] = storage.read_json(path)
        if stored["options"] != options:
            differing = sorted(key for key in options if stored["options"].get(key) != options[key])
            raise UserError(
                f"{dest} holds an import that was cut off and had other options ({', '.join(differing)}); repeat its "
                "command to continue it, name another folder, or add --overwrite"
            )
        return stored

    def place(self, split: str) -> Reached:
        """Where a split continues."""
        return self._reached.get(split, Reached())

    def reached(self, split: str, records: int, shards: int, state: dict[str, Any]) -> None:
        """Notes that the first `records` records of a split are done, in `shards` whole shards."""
        self._reached[split] = Reached(records, shards)
        self.state = state
        if self._unwritten:
            # before the journal: an image that comes again after a cut is found with its own path, and is no duplicate
            lines = [json.dumps([digest, *self._first[digest]]) + "\n" for digest in self._unwritten]
            name = f"digests-{self._num_digest_files:05d}.jsonl"
            storage.write_bytes(storage.join(self.folder, name), "".join(lines).encode())
            self._unwritten, self._num_digest_files = [], self._num_digest_files + 1
        self._write()

    def first_with(self, digest: bytes, path: str, label: str) -> tuple[str, str] | None:
        """(path, label) of the first image with these bytes, or None, and then this one is the first."""
        first = self._first.get(digest.hex())
        if first is None:
            self._first[digest.hex()] = (path, label)
            self._unwritten.append(digest.hex())
            return None
        return None if first[0] == path else first

    def publish(self, splits: list[str]) -> None:
        """Moves the shards to their place and removes the journal."""
        fs, root = storage.filesystem(self.folder)
        for split in splits:
            for name in storage.names_in(storage.join(self.folder, split) if split else self.folder):
                if name.endswith(".parquet"):
                    target = storage.join(self.dest, split, name) if split else storage.join(self.dest, name)
                    with storage.explained("write", target):
                        source = f"{root}/{split}/{name}" if split else f"{root}/{name}"
                        if storage.is_local(self.dest):
                            storage.make_dirs(target.rsplit("/", 1)[0])
                        fs.mv(source, storage.filesystem(target)[1])
        self.discard()

    def discard(self) -> None:
        """Removes the unfinished shards and the journal."""
        storage.remove(self.folder)

    def _write(self) -> None:
        reached = {split: [place.records_done, place.shards_done] for split, place in self._reached.items()}
        storage.write_json(
            storage.join(self.folder, JOURNAL), {"options": self.options, "reached": reached, "state": self.state}
        )


def make_room(dest: str, *, overwrite: bool) -> None:
    """Sees to it that `dest` is empty. Removes only files that bear the names an import gives.

    Raises UserError when `dest` is not empty and may not be emptied, or cannot be written.
    """
    # the summary first: without it a half removed folder does not look like a complete import
    for name in sorted(check_room(dest, overwrite=overwrite), key=lambda name: name != "_import.json"):
        storage.remove(storage.join(dest, name))
    storage.check_writable(dest)


def check_room(dest: str, *, overwrite: bool) -> list[str]:
    """The names in `dest`, which may all be removed. Raises UserError when one may not."""
    names = storage.names_in(dest)
    folders = [*SPLITS, UNFINISHED, *(f"{UNFINISHED}/{split}" for split in SPLITS)]
    held = {name for name in names if name not in folders}
    for folder in folders:
        if folder.split("/")[0] in names:
            inner = (f"{folder}/{name}" for name in storage.names_in(f"{dest}/{folder}"))
            held |= {name for name in inner if name not in folders}
    if held and not overwrite:
        raise UserError(f"{dest} is not empty (it holds {min(held)}); name another folder or add --overwrite")
    if foreign := sorted(name for name in held if not OWN_NAMES.fullmatch(name.rsplit("/", 1)[-1])):
        raise UserError(f"{dest} holds {foreign[0]}, which no import wrote; remove it yourself or name another folder")
    return names
