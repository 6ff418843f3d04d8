"""Packs a source of images into shards: every image is checked, bad ones are set aside, the order is mixed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from cluster import storage
from cluster.errors import UserError
from pretrain.data.decode import BadImage, decode_image
from pretrain.data.packing import ShardWriter, schema_of
from pretrain.data.progress import ProgressLine
from pretrain.data.sources import SOURCES, Record

SUMMARY, QUARANTINE = "import.json", "quarantine.jsonl"
MAX_FILE_BYTES = 512 * 2**20  # no photo is that large, and workers hold whole files
REMOTE_THREADS = 32
OWN_NAMES = re.compile(r"shard-\d{5,}\.parquet|import\.json|quarantine\.jsonl|\.tmp-[0-9a-z_]{8,32}")
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Checked:
    """A record and either its encoded bytes or why it is bad."""

    record: Record
    data: bytes
    reason: str | None


def import_folder(
    src: str,
    dest: str,
    *,
    labels: str = "auto",
    validation_share: float = 0.0,
    seed: int = 0,
    workers: int | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
    kind: str = "folder",
) -> dict[str, Any]:
    """Packs a folder of images into shards and returns the summary that is also written to DEST/import.json.

    The encoded bytes are kept as they are. Images that cannot be decoded are listed in DEST/quarantine.jsonl.

    Args:
        src, dest: folders, local or in any store.
        labels: see `pretrain.data.sources.folder_records`.
        validation_share: in [0, 1). Above 0 the shards go to DEST/train and DEST/validation, and an image's side depends on
            its path alone, so that it stays when others are added.
        seed: of the order in the shards.
        workers: threads that read and decode; by default one for each CPU, more for a remote source.
        overwrite: removes what an earlier import wrote to `dest`; never anything else.

    Raises:
        UserError: nothing to pack, `dest` not empty, no readable image, or nothing on one side of the split.
    """
    started = time.monotonic()
    if not 0 <= validation_share < 1:
        raise UserError(f"--validation must be at least 0 and below 1, not {validation_share}")
    src, dest = storage.absolute(src), storage.absolute(dest)
    records = SOURCES[kind](src, labels=labels, leave_out=dest)
    split_of = {record.path: _split_of(record.path, validation_share) for record in records}
    if missing := {split for split in SPLITS if validation_share > 0} - set(split_of.values()):
        raise UserError(
            f"--validation {validation_share} of {len(records)} images leaves none for {missing.pop()}; choose another share"
        )
    _make_room(dest, overwrite=overwrite)

    # Class folders come one class after the other. A reader shuffles whole row groups and then rows in a window, so a group
    # of one class would give batches of few classes; mixed here, every group is a sample of all. Only paths are shuffled.
    records.sort(key=lambda record: _hash("order", str(seed), record.path))
    schema = schema_of() if records[0].label is None else schema_of(label=pa.string())
    counts: dict[str, Counter[str]] = {split: Counter() for split in sorted(set(split_of.values()))}
    quarantined: list[dict[str, str]] = []
    num_bytes = 0
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(ShardWriter(storage.join(dest, split) if split else dest, schema))
            for split in counts
        }
        progress = stack.enter_context(ProgressLine("packing", len(records), shown=show_progress))
        for checked in _read_and_check(records, workers or _num_threads(src)):
            record = checked.record
            progress.advance()
            if checked.reason is not None:
                quarantined.append({"path": record.path, "reason": checked.reason})
                continue
            split = split_of[record.path]
            row: dict[str, Any] = {"image": {"bytes": checked.data, "path": record.path}}
            if record.label is not None:
                row["label"] = record.label
            writers[split].write(row)
            counts[split][record.label or ""] += 1
            num_bytes += len(checked.data)
        if quarantined:  # written before an all-bad import fails, for it says why
            lines = sorted(quarantined, key=lambda line: line["path"])
            storage.write_bytes(
                storage.join(dest, QUARANTINE), "".join(json.dumps(line) + "\n" for line in lines).encode()
            )
        if len(quarantined) == len(records):
            raise UserError(
                f"none of the {len(records)} images in {src} can be decoded (first: {lines[0]['path']}: "
                f"{lines[0]['reason']}); all are listed in {storage.join(dest, QUARANTINE)}"
            )

    total = sum(counts.values(), Counter())
    summary = {
        "format_version": 1,
        "source": src,
        "images": total.total(),
        "bytes": num_bytes,
        "classes": None if records[0].label is None else dict(sorted(total.items())),
        "quarantined": len(quarantined),
        "quarantine_reasons": dict(Counter(line["reason"].split(":")[0] for line in quarantined).most_common()),
        "shards": sum(writer.num_shards for writer in writers.values()),
        "splits": {split: counts[split].total() for split in counts if split},
        "notes": _notes(records, counts, labels),
        "seconds": round(time.monotonic() - started, 3),
    }
    storage.write_json(storage.join(dest, SUMMARY), summary)  # last: where it stands, the import is complete
    return summary


def _hash(*words: str) -> bytes:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).digest()


def _split_of(path: str, validation_share: float) -> str:
    """`train` or `validation` by the hash of the path; an empty text when nothing is split off."""
    if validation_share == 0:
        return ""
    return SPLITS[int.from_bytes(_hash("split", path)[:8], "big") < validation_share * 2**64]


def _num_threads(src: str) -> int:
    return (os.cpu_count() or 1) if storage.is_local(src) else REMOTE_THREADS


def _make_room(dest: str, *, overwrite: bool) -> None:
    """Sees to it that `dest` is empty. Removes only files that bear the names an import gives."""
    names = storage.names_in(dest)
    inner = [f"{split}/{name}" for split in SPLITS if split in names for name in storage.names_in(f"{dest}/{split}")]
    held = sorted((set(names) | set(inner)) - set(SPLITS))  # empty split folders are what an interrupted import leaves
    if held and not overwrite:
        raise UserError(f"{dest} is not empty (it holds {held[0]}); name another folder or add --overwrite")
    if foreign := [name for name in held if not OWN_NAMES.fullmatch(name.rsplit("/", 1)[-1])]:
        raise UserError(f"{dest} holds {foreign[0]}, which no import wrote; remove it yourself or name another folder")
    # the summary first: without it a half removed folder does not look like a complete import
    for name in sorted(names, key=lambda name: name != SUMMARY):
        storage.remove(storage.join(dest, name))
    storage.check_writable(dest)


def _read_and_check(records: Sequence[Record], num_threads: int) -> Iterator[Checked]:
    """All records, read and decoded by a pool, in their order, with a bounded number on the way."""
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="check")
    rest = iter(records)
    on_the_way: deque[Future[Checked]] = deque(pool.submit(_check, record) for record in islice(rest, 4 * num_threads))
    try:
        while on_the_way:
            yield on_the_way.popleft().result()
            on_the_way.extend(pool.submit(_check, record) for record in islice(rest, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check(record: Record) -> Checked:
    if record.size_bytes > MAX_FILE_BYTES:
        return Checked(record, b"", f"file too large: {record.size_bytes} bytes")
    try:
        data = storage.read_bytes(record.url)
        decode_image(data)
    except UserError as error:
        return Checked(record, b"", f"cannot be read: {str(error).rsplit(': ', 1)[-1]}")
    except BadImage as error:
        return Checked(record, b"", str(error))
    return Checked(record, data, None)


def _notes(records: Sequence[Record], counts: dict[str, Counter[str]], labels: str) -> list[str]:
    """What the user should know before training on the shards."""
    notes = []
    if labels == "auto" and records[0].label is None and any("/" in record.path for record in records):
        notes.append(
            "no labels: the images do not lie exactly one folder deep; --labels folders takes their folders as classes"
        )
    if SPLITS[1] in counts and (unseen := sorted(set(counts[SPLITS[1]]) - set(counts[SPLITS[0]]))):
        notes.append(f"classes in validation that train never shows: {', '.join(unseen)}")
    if records[0].label is not None:
        whole = {record.label or "" for record in records}
        if gone := sorted(whole - set().union(*counts.values())):
            notes.append(f"classes without a single readable image: {', '.join(gone)}")
    return notes


def describe_import(summary: dict[str, Any], dest: str) -> str:
    """The summary in a few lines for the terminal."""
    lines = [
        f"packed {summary['images']} images ({summary['bytes'] / 2**20:.1f} MiB) into {summary['shards']} "
        f"shard{'s'[: summary['shards'] != 1]} in {summary['seconds']:.1f} s: {dest}"
    ]
    if summary["splits"]:
        lines.append("  " + ", ".join(f"{split}: {num}" for split, num in summary["splits"].items()))
    if summary["classes"] is not None:
        most = sorted(summary["classes"].items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{name} {num}" for name, num in most[:20])
        more = f", and {len(most) - 20} more" if len(most) > 20 else ""
        lines.append(f"  {len(most)} classes: {shown}{more}")
    if summary["quarantined"]:
        reasons = ", ".join(f"{reason} {num}" for reason, num in summary["quarantine_reasons"].items())
        lines.append(
            f"warning: {summary['quarantined']} files set aside ({reasons}); listed in {storage.join(dest, QUARANTINE)}"
        )
    lines.extend(f"note: {note}" for note in summary["notes"])
    return "\n".join(lines)
