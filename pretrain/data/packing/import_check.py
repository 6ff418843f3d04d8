"""`python -m pretrain.data import ... --check`: what an import would do,
from its listing and a sample of its images.
"""

from __future__ import annotations

import time
from typing import Any

from cluster import storage
from cluster.durations import duration
from cluster.errors import UserError
from pretrain.data.packing.import_journal import Journal, check_room
from pretrain.data.packing.importing import (
    ImportOptions,
    arranged,
    journal_options,
    num_threads_for,
    prepare_all,
    surveyed,
)
from pretrain.data.packing.sources import list_records

SAMPLE = 64


def check_import(
    src: str,
    dest: str,
    options: ImportOptions,
    *,
    kind: str = "auto",
    workers: int | None = None,
    overwrite: bool = False,
    **source_options: Any,
) -> list[str]:
    """What the import of these arguments would do, in lines for the terminal. Writes nothing.

    Raises UserError for what would stop the import at its start.
    """
    src, dest = (src if ":" in src else storage.absolute(src)), storage.absolute(dest)
    listing = list_records(src, kind=kind, leave_out=dest, **source_options)
    records, sides, splits = arranged(listing, options)
    on_stored = surveyed(
        listing, records, src, workers or num_threads_for(records), source_options.get("boxes")
    )
    stored = Journal.stored(dest, journal_options(src, records, options, on_stored), overwrite=overwrite)
    if stored is None:
        check_room(dest, overwrite=overwrite)
    storage.check_writable(dest)

    sample = records[:SAMPLE]  # they are in random order
    started = time.monotonic()
    prepared = list(prepare_all(sample, options, workers or num_threads_for(sample), on_stored=on_stored))
    seconds = (time.monotonic() - started) / len(sample)
    good = [item for item in prepared if item.data is not None]
    if not good:
        raise UserError(
            f"none of {len(sample)} images tried in {src} can be used (first: {sample[0].path}: "
            f"{prepared[0].notes[0]})"
        )
    mean_bytes = sum(len(item.data or b"") for item in good) / len(good)
    num_of = ", ".join(f"{split} {sides.count(split)}" for split in splits if split)
    lines = [
        f"source: {listing.kind}, {len(records)} images{f' ({num_of})' if num_of else ''}",
        f"first {len(sample)} images: {len(good)} can be used"
        + "".join(f"; {item.record.path}: {item.notes[0]}" for item in prepared if item.data is None),
        f"{dest} can be written" + ("; the command continues a cut-off import there" if stored else ""),
        f"about {len(records) * mean_bytes / 2**20:.1f} MiB of shards, in about "
        f"{duration(len(records) * seconds)}",
    ]
    lines += [f"read as {listing.told}"] * bool(listing.told)
    lines += [f"annotation set aside: {location}: {reason}" for location, reason in listing.problems[:5]]
    if len(listing.problems) > 5:
        lines.append(f"and {len(listing.problems) - 5} more annotations set aside")
    return [*lines, *(f"note: {note}" for note in listing.notes), "nothing was started"]
