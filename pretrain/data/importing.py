"""Packs a source of images into shards: every image is checked, bad ones are set aside, the order is mixed.

An import that was cut off continues when the same command is run again: shards are written one after the other into
DEST/.unfinished, each is kept when it is complete, and a journal there says how far they reach. They move to their place
when the last one is written, so readers never see a part of an import.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa

from cluster import storage
from cluster.errors import UserError
from cluster.secrets import masked
from pretrain.data.import_journal import Journal
from pretrain.data.import_survey import look_at_boxes
from pretrain.data.ledger import ASIDE, DUPLICATE, PASSED_OVER, Fates, Ledger, as_table, files_jsonl, make_ledger
from pretrain.data.packing import (
    DEFAULT_BYTES_PER_GROUP,
    DEFAULT_BYTES_PER_SHARD,
    DEFAULT_ROWS_PER_GROUP,
    ShardWriter,
    schema_of,
)
from pretrain.data.preparing import FEW_BITS, OUTSIDE, RESIZED, TURNED, Prepared, as_jpeg, prepare
from pretrain.data.progress import ProgressLine
from pretrain.data.sources import KINDS, Listing, Record, list_records
from pretrain.data.sources.parallel import REMOTE_THREADS, in_order

SUMMARY, QUARANTINE, FILES = (
    "_import.json",
    "_quarantine.jsonl",
    "_files.jsonl",
)  # readers of folders pass over such names
MAX_SET_ASIDE = 0.05  # share of the images or annotations; above it an import is no success
MOST_UNREAD_IN_A_ROW = 200
MOST_REASONS = 20  # in the summary, where each annotation may have one of its own; the quarantine lists all
SPLITS = ("train", "validation")
LEAK = "image of one split with the bytes of one of another"
NOTED = (TURNED, RESIZED, OUTSIDE, FEW_BITS, LEAK)  # facts that are said, besides standing in the ledger
OBJECTS = pa.struct([("bbox", pa.list_(pa.list_(pa.float32()))), ("category", pa.list_(pa.string()))])
COLUMNS = {"label": pa.string(), "labels": pa.list_(pa.string()), "objects": OBJECTS, "captions": pa.list_(pa.string())}


@dataclass(frozen=True)
class ImportOptions:
    """What the shards depend on; a cut-off import continues only with the same ones.

    Args:
        validation_share: in [0, 1). Above 0 the shards go to DEST/train and DEST/validation, and an image's side depends on
            its path alone, so that it stays when others are added; of equal images on both sides the later ones are left out.
            A source that has splits of its own keeps them, and only a missing validation is taken from its training images.
        seed: of the order in the shards.
        drop_duplicates: of images with equal bytes only the first is kept.
        short_side: larger images are scaled down to so many pixels on their short side, and stored as JPEG; 0 stores all
            images byte for byte as they are.
        jpeg_quality: of images that are scaled down, 1 to 95.
        rows_per_group, bytes_per_group: a row group ends with whichever comes first.
        bytes_per_shard: a file ends with the row group that reaches it.
    """

    validation_share: float = 0.0
    seed: int = 0
    drop_duplicates: bool = False
    short_side: int = 0
    jpeg_quality: int = 92
    rows_per_group: int = DEFAULT_ROWS_PER_GROUP
    bytes_per_group: int = DEFAULT_BYTES_PER_GROUP
    bytes_per_shard: int = DEFAULT_BYTES_PER_SHARD

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise UserError(f"--validation must be at least 0 and below 1, not {self.validation_share}")
        if self.short_side < 0 or not 1 <= self.jpeg_quality <= 95:
            raise UserError(
                f"--short-side {self.short_side} --jpeg-quality {self.jpeg_quality} is not possible: a short side is 0 or "
                "more pixels, a quality 1 to 95"
            )
        if min(self.rows_per_group, self.bytes_per_group, self.bytes_per_shard) < 1:
            raise UserError("--rows-per-group, --group-mib and --shard-mib must be at least 1")


@dataclass
class Tally:
    """What an import has done so far; all of it JSON, for the journal."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> label ("" for none) -> images
    bytes_before: int = 0
    bytes_after: int = 0
    duplicates: int = 0
    boxes: int = 0
    captions: int = 0
    aside: int = 0
    leaks: int = 0
    aside_here: int = 0  # of the images set aside, those whose files were listed with the source
    left_out_here: int = 0  # the same of duplicates
    facts: dict[str, int] = field(default_factory=dict)  # what was seen of single images -> how often
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Images packed."""
        return sum(sum(labels.values()) for labels in self.counts.values())


def import_images(
    src: str,
    dest: str,
    options: ImportOptions | None = None,
    *,
    kind: str = "auto",
    workers: int | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
    max_set_aside: float = MAX_SET_ASIDE,
    **source_options: Any,
) -> dict[str, Any]:
    """Packs a source into shards and returns the summary that is also written to DEST/_import.json.

    Images that cannot be decoded and annotations that cannot be used are listed in DEST/_quarantine.jsonl, files that are no
    part of the data set in DEST/_files.jsonl; the summary's `ledger` counts all. Its `stopped` is a text where more than
    `max_set_aside` of the images or of the annotations were set aside: the shards are there for a look, but are no success.

    Args:
        src, dest: see `pretrain.data.sources.list_records`; a folder, local or in any store.
        options: what the shards depend on.
        kind, source_options: what the source is, see `list_records`.
        workers: threads that read and decode; by default one for each CPU, more for a remote source.
        overwrite: removes what an earlier import wrote to `dest`; never anything else. An import that was cut off and had
            the same options is continued all the same.
        max_set_aside: share in [0, 1].

    Raises:
        UserError: nothing to pack, `dest` not empty, no readable image, nothing on one side of the split, or so many images
            in a row that cannot be read that the store must be gone.
    """
    started = time.monotonic()
    options = options or ImportOptions()
    if not 0 <= max_set_aside <= 1:
        raise UserError(f"--max-set-aside is a share from 0 to 1, not {max_set_aside}")
    src, dest = (src if ":" in src else storage.absolute(src)), storage.absolute(dest)
    listing = list_records(src, kind=kind, leave_out=dest, **source_options)
    records, sides, splits = arranged(listing, options)
    num_threads = workers or num_threads_for(records)
    on_stored = surveyed(listing, records, src, num_threads, source_options.get("boxes"))
    journal = Journal.open(dest, journal_options(src, records, options, on_stored), overwrite=overwrite)
    tally = Tally(**journal.state)
    if journal.state and show_progress:
        print(f"continues an import that was cut off: {tally.images} images are packed already", flush=True)

    schema = schema_of(**{name: kind for name, kind in COLUMNS.items() if _is_known(name, records)})
    preparing = {"on_stored": on_stored, "same_stem": _of_same_stem(records) if options.short_side else frozenset()}
    # of tars the members are records, not the files
    here = (
        frozenset(file.url for file in listing.tree.files.values())
        if listing.tree and listing.kind != "tar"
        else frozenset()
    )
    num_shards = 0
    with ProgressLine("packing", len(records), shown=show_progress) as progress:
        for split in splits:
            numbers = [number for number, side in enumerate(sides) if side == split]
            place = journal.place(split)
            progress.start_at(place.records_done)
            with ShardWriter(
                storage.join(journal.folder, split) if split else journal.folder,
                schema,
                rows_per_group=options.rows_per_group,
                bytes_per_group=options.bytes_per_group,
                bytes_per_shard=options.bytes_per_shard,
                first_shard=place.shards_done,
            ) as writer:
                todo = numbers[place.records_done :]
                prepared = prepare_all((records[number] for number in todo), options, num_threads, **preparing)
                num_unread = 0
                for done, (number, item) in enumerate(zip(todo, prepared, strict=True), place.records_done + 1):
                    progress.advance()
                    num_unread = num_unread + 1 if item.unread else 0
                    if num_unread == MOST_UNREAD_IN_A_ROW:  # better to stop than to set the rest aside
                        raise UserError(
                            f"{num_unread} images in a row cannot be read (last: {item.record.path}: {item.notes[0]}); once "
                            "they can, the same command continues"
                        )
                    _take(
                        item,
                        number,
                        records,
                        tally.counts.setdefault(split, {}),
                        writer,
                        tally,
                        journal,
                        options,
                        sides,
                        here,
                    )
                    if writer.num_shards > journal.place(split).shards_done:  # all rows up to here lie in whole shards
                        journal.reached(split, done, writer.num_shards, asdict(tally))
            journal.reached(split, len(numbers), writer.num_shards, asdict(tally))
            num_shards += writer.num_shards
    problems = [*listing.problems, *journal.problems]
    _write_quarantine(dest, problems)
    if not tally.images:
        first = min(journal.problems or problems)
        journal.discard()
        raise UserError(
            f"none of the {len(records)} images in {src} can be used (first: {first[0]}: {first[1]}); "
            f"all are listed in {storage.join(dest, QUARANTINE)}"
        )
    journal.publish(splits)
    fates_of_records = Fates(
        tally.images, tally.aside, tally.duplicates + tally.leaks, tally.aside_here, tally.left_out_here
    )
    ledger, fates = make_ledger(listing, fates_of_records, facts=tally.facts, examples=tally.examples)
    if lines := files_jsonl(fates):
        storage.write_bytes(storage.join(dest, FILES), lines)
    summary = _summary(src, records, listing, tally, problems, options, num_shards, ledger, max_set_aside)
    summary["seconds"] = round(time.monotonic() - started, 3)
    storage.write_json(storage.join(dest, SUMMARY), summary)  # where it stands, the import is complete
    journal.discard()  # last: until then the same command does again what was cut off
    return summary


def arranged(listing: Listing, options: ImportOptions) -> tuple[list[Record], list[str], list[str]]:
    """The records in the order of packing, the split of each, and all splits ("" alone when nothing is split off).

    Raises UserError when a split would be empty.
    """
    # Class folders come one class after the other. A reader shuffles whole row groups and then rows in a window, so a group
    # of one class would give batches of few classes; mixed here, every group is a sample of all. Only paths are shuffled.
    records = sorted(listing.records, key=lambda record: _hash("order", str(options.seed), record.path))
    own = {record.split for record in records if record.split is not None}
    share = options.validation_share
    if share and SPLITS[1] in own:
        listing.notes.append(f"--validation {share} is not used: the source has a validation split of its own")
        share = 0.0
    sides = [_side_of(record, share) for record in records]
    splits = sorted(set(sides))
    if missing := {split for split in SPLITS if share > 0} - set(splits):
        raise UserError(
            f"--validation {options.validation_share} of {len(records)} images leaves none for {missing.pop()}; "
            "choose another share"
        )
    return records, sides, splits


def surveyed(listing: Listing, records: Sequence[Record], src: str, num_threads: int, boxes: str | None) -> bool | None:
    """`look_at_boxes` of a source, where the user has not said what the numbers of boxes mean."""
    option = "--boxes" if "boxes" in KINDS[listing.kind][1] else None
    return look_at_boxes(records, src, num_threads=num_threads, option=option, judged=boxes is None)


def journal_options(
    src: str, records: Sequence[Record], options: ImportOptions, on_stored: bool | None
) -> dict[str, Any]:
    """What must be the same for an import to continue."""
    return {**asdict(options), "source": masked(src), "records": _fingerprint(records), "boxes_on_stored": on_stored}


def _take(
    item: Prepared,
    number: int,
    records: Sequence[Record],
    labels: dict[str, int],
    writer: ShardWriter,
    tally: Tally,
    journal: Journal,
    options: ImportOptions,
    sides: Sequence[str],
    here: Container[str],
) -> None:
    """Packs one image and counts it, or says why not."""
    record = item.record
    for note in item.notes:
        journal.set_aside(record.path, note)
    if item.data is None:
        tally.aside += 1
        tally.aside_here += record.url in here
        tally.examples.setdefault(ASIDE, record.path)
        return
    for fact, num in item.facts.items():
        tally.facts[fact] = tally.facts.get(fact, 0) + num
        tally.examples.setdefault(fact, record.path)
    if options.drop_duplicates or sides[number]:
        earlier = journal.first_with(item.digest, number)
        if earlier is not None and options.drop_duplicates:
            tally.duplicates += 1
            tally.left_out_here += record.url in here
            tally.examples.setdefault(DUPLICATE, record.path)
            journal.set_aside(record.path, _duplicate_of(records[earlier], record))
            return
        if earlier is not None and sides[earlier] != sides[number]:
            if record.split is None or records[earlier].split is None or records[earlier].split == record.split:
                tally.leaks += 1
                tally.left_out_here += record.url in here
                tally.examples.setdefault(DUPLICATE, record.path)
                journal.set_aside(
                    record.path,
                    f"a duplicate of {records[earlier].path}, which is in {sides[earlier]}; it would be in both splits",
                )
                return
            tally.facts[LEAK] = tally.facts.get(LEAK, 0) + 1
            tally.examples.setdefault(LEAK, record.path)
    row: dict[str, Any] = {"image": {"bytes": item.data, "path": item.path}}
    for name in COLUMNS:
        value = item.objects if name == "objects" else getattr(record, name)
        if value is not None:
            row[name] = asdict(value) if name == "objects" else list(value) if isinstance(value, tuple) else value
    writer.write(row)
    told = record.labels if record.label is None else None
    for label in told or (record.label or "",):
        labels[label] = labels.get(label, 0) + 1
    if told:
        labels[""] = labels.get("", 0) + 1 - len(told)  # so that the counts of a split sum to its images
    tally.bytes_before += item.bytes_before
    tally.bytes_after += len(item.data)
    tally.boxes += len(item.objects.bbox) if item.objects else 0
    tally.captions += len(record.captions or ())


def _duplicate_of(first: Record, record: Record) -> str:
    reason = f"a duplicate of {first.path}"
    here, there = (other.label if other.labels is None else list(other.labels) for other in (record, first))
    return reason if here == there else f"{reason}, but its label there is {there!r} and here {here!r}"


def _is_known(column: str, records: Sequence[Record]) -> bool:
    return any(getattr(record, column) is not None for record in records)


def _of_same_stem(records: Sequence[Record]) -> frozenset[str]:
    """Paths that end in something else than .jpg and would be those of another image if they did."""
    taken = Counter(as_jpeg(record.path, ()) for record in records)
    clashing = {record.path for record in records if taken[as_jpeg(record.path, ())] > 1}
    return frozenset(path for path in clashing if not path.endswith(".jpg"))


def prepare_all(
    records: Iterable[Record], options: ImportOptions, num_threads: int, **preparing: Any
) -> Iterator[Prepared]:
    """All records, read, decoded and scaled by a pool, in their order."""
    function = partial(prepare, short_side=options.short_side, jpeg_quality=options.jpeg_quality, **preparing)
    return in_order(function, records, num_threads)


def _hash(*words: str) -> bytes:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).digest()


def _fingerprint(records: Sequence[Record]) -> str:
    """Changes with any image's path or what is known of it, so that a journal is not continued on other data."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(repr((record.path, record.size_bytes, record.label, record.labels, record.objects)).encode())
        digest.update(repr((record.captions, record.frame, record.split, record.problem)).encode())
    return digest.hexdigest()


def _side_of(record: Record, validation_share: float) -> str:
    """The source's split, else `train` or `validation` by the hash of the path; an empty text when nothing is split off."""
    if validation_share == 0 or record.split not in (None, SPLITS[0]):
        return record.split or ""
    return SPLITS[int.from_bytes(_hash("split", record.path)[:8], "big") < validation_share * 2**64]


def num_threads_for(records: Sequence[Record]) -> int:
    """Threads that read and decode: a remote image is mostly waited for. The first records tell, for their order is mixed."""
    is_remote = any(not storage.is_local(record.url) for record in islice(records, 100))
    return REMOTE_THREADS if is_remote else os.cpu_count() or 1


def _write_quarantine(dest: str, problems: Sequence[tuple[str, str]]) -> None:
    if problems:  # written before an all-bad import fails, for it says why
        lines = [
            json.dumps({"path": masked(path), "reason": masked(reason)}) + "\n" for path, reason in sorted(problems)
        ]
        storage.write_bytes(storage.join(dest, QUARANTINE), "".join(lines).encode())


def _summary(
    src: str,
    records: Sequence[Record],
    listing: Listing,
    tally: Tally,
    problems: Sequence[tuple[str, str]],
    options: ImportOptions,
    num_shards: int,
    ledger: Ledger,
    max_set_aside: float,
) -> dict[str, Any]:
    with_classes = _is_known("label", records) or _is_known("labels", records)
    total: Counter[str] = Counter()
    for labels in tally.counts.values():
        total.update({label: num for label, num in labels.items() if label})
    sides = {split: set(labels) - {""} for split, labels in tally.counts.items()}
    notes = list(listing.notes)
    if SPLITS[1] in sides and (unseen := sorted(sides[SPLITS[1]] - sides.get(SPLITS[0], set()))):
        notes.append(f"classes in validation that train never shows: {', '.join(unseen)}")
    if with_classes and (
        gone := sorted({record.label for record in records if record.label} - set().union(*sides.values()))
    ):
        notes.append(f"classes without a single readable image: {', '.join(gone)}")
    notes += [f"{tally.facts[fact]} x {fact} (first: {tally.examples[fact]})" for fact in NOTED if fact in tally.facts]
    for kind, num in ledger.files.items():
        if kind.startswith(f"{PASSED_OVER}: image"):
            notes.append(
                f"{num} x {kind.removeprefix(f'{PASSED_OVER}: ')}: not packed (first: {ledger.examples[kind]})"
            )
    if tally.leaks:
        notes.append(
            f"{tally.leaks} images have the bytes of one in the other split and were left out of the later one"
        )
    return {
        "format_version": 1,
        "source": masked(src),
        "images": tally.images,
        "bytes": tally.bytes_after,
        "bytes_before_scaling": tally.bytes_before if options.short_side else None,
        "classes": dict(sorted(total.items())) if with_classes else None,
        "boxes": tally.boxes if _is_known("objects", records) else None,
        "captions": tally.captions if _is_known("captions", records) else None,
        "duplicates": tally.duplicates if options.drop_duplicates else None,
        "kind": listing.kind,
        "recognised_as": masked(listing.told),
        "quarantined": len(problems),
        "quarantine_reasons": dict(Counter(_short(reason) for _, reason in problems).most_common(MOST_REASONS)),
        "shards": num_shards,
        "splits": {split: sum(labels.values()) for split, labels in sorted(tally.counts.items()) if split},
        "notes": [masked(note) for note in notes],
        "ledger": ledger.as_json(),
        "stopped": _too_many(tally, records, listing, max_set_aside),
    }


def _too_many(tally: Tally, records: Sequence[Record], listing: Listing, most: float) -> str | None:
    """What to do where too large a share of the images or annotations was set aside; None where it was not."""
    num_annotations = max(listing.account.annotations, len(listing.problems))
    for num, among, what in (
        (tally.aside, len(records), "images"),
        (len(listing.problems), num_annotations, "annotations"),
    ):
        if num > most * among:
            return (
                f"{num} of {among} {what} were set aside, more than the share of {most:g} that --max-set-aside allows; "
                f"{QUARANTINE} says why for each. Fix them and import again with --overwrite, or allow a larger "
                "share; the shards "
                "are kept for a look"
            )
    return None


def _short(reason: str) -> str:
    return "duplicate" if reason.startswith("a duplicate of") else reason.split(":")[0]


def describe_import(summary: dict[str, Any], dest: str) -> str:
    """The summary in a few lines for the terminal."""
    lines = [
        f"packed {summary['images']} images ({summary['bytes'] / 2**20:.1f} MiB) into {summary['shards']} "
        f"shard{'s'[: summary['shards'] != 1]} in {summary['seconds']:.1f} s: {dest}"
    ]
    if summary["bytes_before_scaling"]:
        share = 1 - summary["bytes"] / summary["bytes_before_scaling"]
        lines.append(f"  scaling down saved {share:.0%} of {summary['bytes_before_scaling'] / 2**20:.1f} MiB")
    if summary["splits"]:
        lines.append("  " + ", ".join(f"{split}: {num}" for split, num in summary["splits"].items()))
    if summary["classes"] is not None:
        most = sorted(summary["classes"].items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{name} {num}" for name, num in most[:20])
        more = f", and {len(most) - 20} more" if len(most) > 20 else ""
        lines.append(f"  {len(most)} classes: {shown}{more}")
    lines.extend(f"  {summary[name]} {name}" for name in ("boxes", "captions") if summary[name] is not None)
    if summary["recognised_as"]:
        lines.append(f"  read as {summary['recognised_as']}")
    if summary["quarantined"]:
        reasons = ", ".join(f"{reason} {num}" for reason, num in summary["quarantine_reasons"].items())
        lines.append(
            f"warning: {summary['quarantined']} entries set aside ({reasons}); listed in {storage.join(dest, QUARANTINE)}"
        )
    lines.extend(f"note: {note}" for note in summary["notes"])
    lines += as_table(summary["ledger"])
    return "\n".join(lines)
