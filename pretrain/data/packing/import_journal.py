"""How far an import has come, kept beside its shards so that it can continue after it was cut off."""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cluster import storage
from cluster.errors import UserError
from pretrain.data.hashing import DIGEST_BYTES, image_digest
from pretrain.data.packing.first_seen import FirstSeen

FORMAT_VERSION = 1
UNFINISHED, JOURNAL = ".unfinished", "journal.json"
OWN_NAMES = re.compile(
    r"shard-\d{5,}\.parquet|_import\.json|_quarantine\.jsonl|_files\.jsonl"
    r"|journal\.json|part-\d{5,}\.jsonl|\.tmp-[0-9a-z_]{8,32}"
)
SPLITS = ("train", "validation", "test")
MAX_PART_BYTES = 4 * 2**20
MOVING_THREADS = 16  # a store moves a file by copying it


@dataclass(frozen=True)
class Reached:
    """Records of a split that lie in whole shards (or were set aside), and how many shards these are."""

    records_done: int = 0
    shards_done: int = 0


@dataclass
class Journal:
    """The unfinished import in DEST/.unfinished.

    `journal.json` says how far it is; the `part-00000.jsonl`, ... that it counts hold what was learnt of
    single images. A part that it does not count belongs to a shard that was cut off, and is written again.

    Attributes:
        dest: where the shards will be.
        options: what the shards depend on.
        state: counts at the last whole shard; empty for a new import.
        problems: (path, reason) of images set aside so far.
        digest: hash function by which images are told apart; an import goes on with the one it began with.
    """

    dest: str
    options: dict[str, Any]
    state: dict[str, Any] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    digest: str = "sha256"
    _reached: dict[str, Reached] = field(default_factory=dict)
    # digest of an image -> number of the first record with it
    _first: FirstSeen = field(default_factory=FirstSeen)
    _unwritten: bytearray = field(default_factory=bytearray)  # lines of the next part
    _num_parts: int = 0  # that are written, of which `journal.json` counts those up to the last whole shard

    @property
    def folder(self) -> str:
        """Where shards are written until all are complete; its name hides it from readers."""
        return storage.join(self.dest, UNFINISHED)

    @classmethod
    def open(cls, dest: str, options: dict[str, Any], *, overwrite: bool) -> Journal:
        """The journal of a cut-off import with the same options, or a new one in an empty DEST.

        Raises UserError when DEST holds something else.
        """
        stored = cls.stored(dest, options, overwrite=overwrite)
        if stored is None:
            make_room(dest, overwrite=overwrite)
            journal = cls(dest, options)
            journal._write()
            return journal
        reached = {split: Reached(*one) for split, one in stored["reached"].items()}
        digest = stored.get("digest", "blake2b")  # of journals that do not say it
        journal = cls(
            dest, options, stored["state"], digest=digest, _reached=reached, _num_parts=stored["parts"]
        )
        for number in range(journal._num_parts):
            for line in storage.read_bytes(journal._part(number)).decode().splitlines():
                what, key, value = json.loads(line)
                if what == "digest":
                    journal._first.first(bytes.fromhex(key), value)
                else:
                    journal.problems.append((key, value))
        return journal

    @staticmethod
    def stored(dest: str, options: dict[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
        """The journal of a cut-off import with these options that lies in DEST, or None.

        Raises UserError when it had other options, unless it may be overwritten.
        """
        path = storage.join(dest, UNFINISHED, JOURNAL)
        if not storage.exists(path):
            return None
        stored: Any = storage.read_json(path)
        version = stored.get("format_version") if isinstance(stored, dict) else None
        if version != FORMAT_VERSION:
            if overwrite:
                return None
            raise UserError(
                f"{path} has format version {version}, this program writes {FORMAT_VERSION}; name another "
                "folder or add --overwrite"
            )
        if stored["options"] == options:
            return dict(stored)
        if overwrite:
            return None
        raise UserError(
            f"{dest} holds an import that was cut off and had other options "
            f"({_differing(stored['options'], options)}); repeat its command to continue it, name another "
            "folder, or add --overwrite"
        )

    def reached_of(self, split: str) -> Reached:
        """Where a split continues."""
        return self._reached.get(split, Reached())

    def reached(self, split: str, records: int, shards: int, state: dict[str, Any]) -> None:
        """Notes that the first `records` records of a split are done, in `shards` whole shards."""
        self._reached[split] = Reached(records, shards)
        self.state = state
        self._write_part()
        self._write()

    def set_aside(self, path: str, reason: str) -> None:
        """Notes an image that is not packed, or something about one that is."""
        self.problems.append((path, reason))
        self._note("problem", path, reason)

    def digest_of(self, data: bytes) -> bytes:
        """What tells the bytes of an image from those of others."""
        if self.digest == "blake2b":
            return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
        return image_digest(data)

    def first_with(self, digest: bytes, number: int) -> int | None:
        """The number of the first record with these bytes, or None, and then this one is the first."""
        first = self._first.first(digest, number)
        if first != number:
            return first
        self._note("digest", digest.hex(), number)
        return None

    def _note(self, *entry: str | int) -> None:
        self._unwritten += f"{json.dumps(entry)}\n".encode()
        if len(self._unwritten) >= MAX_PART_BYTES:  # a shard of small images has millions of lines
            self._write_part()

    def _write_part(self) -> None:
        if self._unwritten:
            storage.write_bytes(self._part(self._num_parts), bytes(self._unwritten))
            self._unwritten, self._num_parts = bytearray(), self._num_parts + 1

    def publish(self, splits: list[str]) -> None:
        """Moves the shards to where they belong; one that was moved before a cut is there already."""
        fs, root = storage.filesystem(self.folder)

        def move(split: str, name: str) -> None:
            target = storage.join(self.dest, split, name) if split else storage.join(self.dest, name)
            with storage.explained("write", target):
                fs.mv(f"{root}/{split}/{name}" if split else f"{root}/{name}", storage.filesystem(target)[1])

        moves = []
        for split in splits:
            if split and storage.is_local(self.dest):
                storage.make_dirs(storage.join(self.dest, split))
            names = storage.names_in(storage.join(self.folder, split) if split else self.folder)
            moves += [(split, name) for name in names if name.endswith(".parquet")]
        with ThreadPoolExecutor(MOVING_THREADS, thread_name_prefix="move") as pool:
            list(pool.map(lambda of: move(*of), moves))

    def discard(self) -> None:
        """Removes the unfinished shards and the journal."""
        storage.remove(self.folder)

    def _part(self, number: int) -> str:
        return storage.join(self.folder, f"part-{number:05d}.jsonl")

    def _write(self) -> None:
        reached = {split: [one.records_done, one.shards_done] for split, one in self._reached.items()}
        content = {"format_version": FORMAT_VERSION, "options": self.options, "reached": reached}
        content |= {"parts": self._num_parts, "state": self.state, "digest": self.digest}
        storage.write_json(storage.join(self.folder, JOURNAL), content)


def _differing(stored: dict[str, Any], options: dict[str, Any]) -> str:
    texts = []
    for key in sorted(stored.keys() | options.keys()):
        if stored.get(key) != options.get(key):
            values = f"{key}: {stored.get(key)} -> {options.get(key)}"
            texts.append("other images or annotations in the source" if key == "records" else values)
    return ", ".join(texts)


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
        raise UserError(
            f"{dest} is not empty (it holds {min(held)}); name another folder or add --overwrite"
        )
    if foreign := sorted(name for name in held if not OWN_NAMES.fullmatch(name.rsplit("/", 1)[-1])):
        raise UserError(
            f"{dest} holds {foreign[0]}, which no import wrote; remove it yourself or choose another folder"
        )
    return names
