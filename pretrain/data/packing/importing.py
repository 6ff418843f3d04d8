"""Packs a source of images into shards: every image is checked, bad ones are set aside, the order is mixed.

An import that was cut off continues when the same command is run again: shards are written one after the
other into DEST/.unfinished, each is kept when it is complete, and a journal there says how far they reach.
They move to their place when the last one is written, so readers never see a part of an import.
"""

from __future__ import annotations

import hashlib
import os
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.errors import UserError
from cluster.progress import ProgressLine
from cluster.secrets import masked
from pretrain.data.packing.import_journal import Journal
from pretrain.data.packing.import_summary import (
    QUARANTINE,
    SUMMARY,
    describe_import,
    finished_before,
    summary_of,
    write_quarantine,
)
from pretrain.data.packing.import_survey import look_at_boxes
from pretrain.data.packing.import_taking import Taking, Tally
from pretrain.data.packing.ledger import files_jsonl, files_of
from pretrain.data.packing.packing import (
    DEFAULT_BYTES_PER_GROUP,
    DEFAULT_BYTES_PER_SHARD,
    DEFAULT_ROWS_PER_GROUP,
    ShardWriter,
    schema_of,
)
from pretrain.data.packing.preparing import Prepared, as_jpeg, prepare
from pretrain.data.packing.sources import KINDS, Listing, Record, Records, list_records
from pretrain.data.packing.sources.parallel import REMOTE_THREADS, in_order
from pretrain.data.packing.sources.record_list import FewWords

__all__ = ["ImportOptions", "describe_import", "import_images"]

FILES = "_files.jsonl"  # readers of folders pass over such names
MAX_SET_ASIDE = 0.05  # fraction of the images or annotations; above it an import is no success
MAX_UNREAD_IN_A_ROW = 200
# that a thread prepares before it hands them over, which costs as much as a tenth of a small image
IMAGES_AT_ONCE = 8
SPLITS = ("train", "validation")
OBJECTS = pa.struct([("bbox", pa.list_(pa.list_(pa.float32()))), ("category", pa.list_(pa.string()))])
COLUMNS = {
    "label": pa.string(),
    "labels": pa.list_(pa.string()),
    "objects": OBJECTS,
    "captions": pa.list_(pa.string()),
}


@dataclass(frozen=True)
class ImportOptions:
    """What the shards depend on; a cut-off import continues only with the same ones.

    Args:
        validation_fraction: in [0, 1). Above 0 the shards go to DEST/train and DEST/validation, and an
            image's side depends on its path alone, so that it stays when others are added; of equal images
            on both sides the later ones are left out. A source that has splits of its own keeps them, and
            only a missing validation is taken from its training images.
        seed: of the order in the shards.
        drop_duplicates: of images with equal bytes only the first is kept.
        short_side: larger images are scaled down to so many pixels on their short side, and stored as JPEG;
            0 stores all images byte for byte as they are.
        jpeg_quality: of images that are scaled down, 1 to 95.
        decoded_form: images are stored decoded, see `pretrain.data.images.planes`, at the size that
            `short_side` says.
        rows_per_group, bytes_per_group: a row group ends with whichever comes first.
        bytes_per_shard: a file ends with the row group that reaches it.
    """

    validation_fraction: float = 0.0
    seed: int = 0
    drop_duplicates: bool = False
    short_side: int = 0
    jpeg_quality: int = 92
    decoded_form: bool = False
    rows_per_group: int = DEFAULT_ROWS_PER_GROUP
    bytes_per_group: int = DEFAULT_BYTES_PER_GROUP
    bytes_per_shard: int = DEFAULT_BYTES_PER_SHARD

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise UserError(f"--validation must be at least 0 and below 1, not {self.validation_fraction}")
        if self.short_side < 0 or not 1 <= self.jpeg_quality <= 95:
            raise UserError(
                f"--short-side {self.short_side} --jpeg-quality {self.jpeg_quality} is not possible: a "
                "short side is 0 or more pixels, a quality 1 to 95"
            )
        if min(self.rows_per_group, self.bytes_per_group, self.bytes_per_shard) < 1:
            raise UserError("--rows-per-group, --group-mib and --shard-mib must be at least 1")


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

    Images that cannot be decoded and annotations that cannot be used are listed in DEST/_quarantine.jsonl,
    files that are no part of the data set in DEST/_files.jsonl; the summary's `ledger` counts all. Its
    `stopped` is a text where more than `max_set_aside` of the images or of the annotations were set aside:
    the shards are there for a look, but are no success.

    Args:
        src, dest: see `pretrain.data.packing.sources.list_records`; a folder, local or in any store.
        options: what the shards depend on.
        kind, source_options: what the source is, see `list_records`.
        workers: threads that read and decode; by default one for each CPU, more for a remote source.
        overwrite: removes what an earlier import wrote to `dest`; never anything else. An import that was
            cut off and had the same options is continued all the same. Without it, what the same import has
            packed already stays.
        max_set_aside: fraction in [0, 1].

    Raises:
        UserError: nothing to pack, `dest` not empty, no readable image, nothing on one side of the split, or
            so many images in a row that cannot be read that the store must be gone.
    """
    started = time.monotonic()
    options = options or ImportOptions()
    if not 0 <= max_set_aside <= 1:
        raise UserError(f"--max-set-aside is a fraction from 0 to 1, not {max_set_aside}")
    src, dest = (src if ":" in src else storage.absolute(src)), storage.absolute(dest)
    listing = list_records(src, kind=kind, leave_out=dest, **source_options)
    files = files_of(listing)
    listing.records, sides, splits = arranged(listing, options)
    records = listing.records
    num_threads = workers or num_threads_for(records)
    on_stored = surveyed(listing, records, src, num_threads, source_options.get("boxes"))
    made_from = journal_options(src, records, options, on_stored)
    if not overwrite and (summary := finished_before(dest, made_from, max_set_aside)) is not None:
        if show_progress:
            print("the import is finished already; nothing to do (--overwrite packs again)", flush=True)
        return summary
    journal = Journal.open(dest, made_from, overwrite=overwrite)
    tally = Tally(**journal.state)
    taking = Taking(records, sides, files, tally, journal, options.drop_duplicates)
    if journal.state and show_progress:
        print(f"continues an import that was cut off: {tally.images} images are packed already", flush=True)
    num_shards = pack_all(
        taking, splits, options, num_threads, on_stored=on_stored, show_progress=show_progress
    )
    problems = [*listing.problems, *journal.problems]
    write_quarantine(dest, problems)
    if not tally.images:
        first = min(journal.problems or problems)
        journal.discard()
        raise UserError(
            f"none of the {len(records)} images in {src} can be used (first: {first[0]}: {first[1]}); "
            f"all are listed in {storage.join(dest, QUARANTINE)}"
        )
    journal.publish(splits)
    if lines := files_jsonl(files.left):
        storage.write_bytes(storage.join(dest, FILES), lines)
    summary = {"format_version": 1, "source": masked(src), "made_from": made_from}
    changed = options.short_side > 0 or options.decoded_form
    summary |= summary_of(listing, taking, problems, is_changed=changed, max_set_aside=max_set_aside)
    summary |= {
        "decoded": options.decoded_form,
        "shards": num_shards,
        "seconds": round(time.monotonic() - started, 3),
    }
    storage.write_json(storage.join(dest, SUMMARY), summary)  # where it stands, the import is complete
    journal.discard()  # last: until then the same command does again what was cut off
    return summary


def pack_all(taking: Taking, splits: Sequence[str], options: ImportOptions, num_threads: int,
             *, on_stored: bool | None, show_progress: bool) -> int:  # fmt: skip
    """Packs what the journal does not know as packed, split by split;
    returns the number of shards of them all.
    """
    records, journal = taking.records, taking.journal
    schema = schema_of(**{name: kind for name, kind in COLUMNS.items() if records.knows(name)})
    preparing = {
        "on_stored": on_stored,
        "same_stem": _of_same_stem(records) if options.short_side else frozenset(),
        "digest_of": journal.digest_of if taking.tells_equal_apart else None,
    }
    num_shards = 0
    with ProgressLine("packing", len(records), shown=show_progress) as progress:
        for split in splits:
            numbers = taking.sides.numbers_of(split)
            reached = journal.reached_of(split)
            progress.start_at(reached.records_done)
            with ShardWriter(
                storage.join(journal.folder, split) if split else journal.folder,
                schema,
                rows_per_group=options.rows_per_group,
                bytes_per_group=options.bytes_per_group,
                bytes_per_shard=options.bytes_per_shard,
                first_shard=reached.shards_done,
            ) as writer:
                todo = array("i", numbers[reached.records_done :].tobytes())
                prepared = prepare_all(
                    (records[number] for number in todo), options, num_threads, **preparing
                )
                for done, (number, item) in enumerate(
                    zip(todo, prepared, strict=True), reached.records_done + 1
                ):
                    progress.advance()
                    taking.take(item, number, writer)
                    if writer.num_shards > journal.reached_of(split).shards_done:
                        # all rows up to here lie in whole shards
                        journal.reached(split, done, writer.num_shards, asdict(taking.tally))
            journal.reached(split, len(numbers), writer.num_shards, asdict(taking.tally))
            num_shards += writer.num_shards
    return num_shards


def arranged(listing: Listing, options: ImportOptions) -> tuple[Records, FewWords, list[str]]:
    """The records in the order of packing, the split of each,
    and all splits ("" alone when nothing is split off).

    Raises UserError when a split would be empty.
    """
    # Class folders come one class after the other. A reader shuffles whole row groups and then rows in a
    # window, so a group of one class would give batches of few classes; mixed here, every group is a sample
    # of all. Only paths are shuffled.
    seed, num = str(options.seed), len(listing.records)
    keys = np.fromiter((_number("order", seed, path) for path in listing.records.paths()), np.uint64, num)
    records = listing.records.taken(np.argsort(keys, kind="stable"))
    own = records.num_of_split()
    fraction = options.validation_fraction
    if fraction and SPLITS[1] in own:
        listing.notes.append(
            f"--validation {fraction} is not used: the source has a validation split of its own"
        )
        fraction = 0.0
    sides = FewWords(
        _side_of(records.split(number), path, fraction) for number, path in enumerate(records.paths())
    )
    splits = sorted(sides.words)
    if missing := {split for split in SPLITS if fraction > 0} - set(splits):
        raise UserError(
            f"--validation {options.validation_fraction} of {len(records)} images leaves none for "
            f"{missing.pop()}; choose another fraction"
        )
    return records, sides, splits


def surveyed(
    listing: Listing, records: Records, src: str, num_threads: int, boxes: str | None
) -> bool | None:
    """`look_at_boxes` of a source, where the user has not said what the numbers of boxes mean."""
    option = "--boxes" if "boxes" in KINDS[listing.kind][1] else None
    return look_at_boxes(records, src, num_threads=num_threads, option=option, check_format=boxes is None)


def journal_options(
    src: str, records: Records, options: ImportOptions, on_stored: bool | None
) -> dict[str, Any]:
    """What must be the same for an import to continue."""
    stored = asdict(options)
    stored["validation_share"] = stored.pop("validation_fraction")  # as journals have always called it
    if not options.decoded_form:
        del stored["decoded_form"]  # which older journals do not know
    return {**stored, "source": masked(src), "records": _fingerprint(records), "boxes_on_stored": on_stored}


def _of_same_stem(records: Records) -> frozenset[str]:
    """Paths that end in something else than .jpg and would be those of another image if they did."""
    hashes = np.fromiter((hash(as_jpeg(path, ())) for path in records.paths()), np.int64, len(records))
    hashes.sort()
    often = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    alike = [path for path in records.paths() if hash(as_jpeg(path, ())) in often] if often else []
    taken = Counter(as_jpeg(path, ()) for path in alike)
    return frozenset(path for path in alike if taken[as_jpeg(path, ())] > 1 and not path.endswith(".jpg"))


def prepare_all(
    records: Iterable[Record], options: ImportOptions, num_threads: int, **preparing: Any
) -> Iterator[Prepared]:
    """All records, read, decoded and scaled by a pool, in their order.

    Raises UserError where so many in a row cannot be read that the store must be gone.
    """
    function = partial(
        prepare,
        short_side=options.short_side,
        jpeg_quality=options.jpeg_quality,
        decoded_form=options.decoded_form,
        **preparing,
    )
    num_unread = 0
    for item in in_order(
        function, records, num_threads, at_once=1 if num_threads >= REMOTE_THREADS else IMAGES_AT_ONCE
    ):
        num_unread = num_unread + 1 if item.unread else 0
        if num_unread == MAX_UNREAD_IN_A_ROW:  # better to stop than to set the rest aside
            raise UserError(
                f"{num_unread} images in a row cannot be read (last: {item.record.path}: {item.notes[0]}); "
                "once they can, the same command continues"
            )
        yield item


def _number(*words: str) -> int:
    """A number below 2**64 that looks random."""
    digest = hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def _fingerprint(records: Records) -> str:
    """Changes with any image's path or what is known of it,
    so that a journal is not continued on other data.
    """
    digest = hashlib.sha256()
    for record in records:
        digest.update(
            repr((record.path, record.size_bytes, record.label, record.labels, record.objects)).encode()
        )
        digest.update(repr((record.captions, record.frame, record.split, record.problem)).encode())
    return digest.hexdigest()


def _side_of(split: str | None, path: str, validation_fraction: float) -> str:
    """The source's split, else `train` or `validation` by the hash of the path;
    an empty text when nothing is split off.
    """
    if validation_fraction == 0 or split not in (None, SPLITS[0]):
        return split or ""
    return SPLITS[_number("split", path) < validation_fraction * 2**64]


def num_threads_for(records: Sequence[Record]) -> int:
    """Threads that read and decode: a remote image is mostly waited for.
    The first records tell, for their order is mixed.
    """
    is_remote = any(not storage.is_local(record.url) for record in islice(records, 100))
    return REMOTE_THREADS if is_remote else os.cpu_count() or 1
