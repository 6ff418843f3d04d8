"""The summary of an import: what goes to _import.json, what is said in the terminal,
and whether it is a success.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cluster import storage
from cluster.durations import duration
from cluster.secrets import masked
from pretrain.data.packing.import_journal import UNFINISHED
from pretrain.data.packing.import_taking import LEAK, Taking
from pretrain.data.packing.ledger import as_table, make_ledger
from pretrain.data.packing.preparing import ASSUMED, FEW_BITS, FRAMES, OUTSIDE, RESIZED, TURNED
from pretrain.data.packing.sources import Listing
from pretrain.data.packing.sources.splits import TRAIN, VALIDATION

SUMMARY, QUARANTINE = "_import.json", "_quarantine.jsonl"  # readers of folders pass over such names
MAX_REASONS = 20  # in the summary, where each annotation may have one of its own; the quarantine lists all
# facts that are said, besides standing in the ledger
NOTED = (TURNED, ASSUMED, RESIZED, OUTSIDE, FEW_BITS, FRAMES, LEAK)


def write_quarantine(dest: str, problems: Sequence[tuple[str, str]]) -> None:
    """Lists images and annotations that were set aside."""
    if problems:  # written before an all-bad import fails, for it says why
        lines = [
            json.dumps({"path": masked(path), "reason": masked(reason)}) + "\n"
            for path, reason in sorted(problems)
        ]
        storage.write_bytes(storage.join(dest, QUARANTINE), "".join(lines).encode())


def finished_before(dest: str, made_from: Mapping[str, Any], max_set_aside: float) -> dict[str, Any] | None:
    """The summary of the import that lies whole in `dest` and had the same images and options, if any."""
    path = storage.join(dest, SUMMARY)
    if UNFINISHED in storage.names_in(dest) or not storage.exists(path):
        return None
    summary = storage.read_json(path)
    if not isinstance(summary, dict) or summary.get("made_from") != made_from:
        return None
    folders = [storage.join(dest, split) for split in summary["splits"]] or [dest]
    names = [name for folder in folders for name in storage.names_in(folder)]
    if sum(name.endswith(".parquet") for name in names) != summary["shards"]:
        return None
    return {**summary, "stopped": too_many(summary["set_aside"], max_set_aside)}


def summary_of(
    listing: Listing,
    taking: Taking,
    problems: Sequence[tuple[str, str]],
    *,
    is_changed: bool,
    max_set_aside: float,
) -> dict[str, Any]:
    """What was packed, set aside and left out, ready for JSON;
    `stopped` is a text where too much was set aside.
    """
    records, tally = taking.records, taking.tally
    ledger = make_ledger(listing, taking.files, tally)
    with_classes = records.knows("label") or records.knows("labels")
    total: Counter[str] = Counter()
    for labels in tally.counts.values():
        total.update({label: num for label, num in labels.items() if label})
    sides = {split: set(labels) - {""} for split, labels in tally.counts.items()}
    notes = list(listing.notes)
    if VALIDATION in sides and (unseen := sorted(sides[VALIDATION] - sides.get(TRAIN, set()))):
        notes.append(f"classes in validation that train does not have: {', '.join(unseen)}")
    if with_classes and (gone := sorted(records.labels() - {""} - set().union(*sides.values()))):
        notes.append(f"classes without a single readable image: {', '.join(gone)}")
    notes += [
        f"{tally.facts[fact]} x {fact} (first: {tally.examples[fact]})"
        for fact in NOTED
        if fact in tally.facts
    ]
    notes += ledger.notes()
    if tally.leaks:
        notes.append(
            f"{tally.leaks} images have the bytes of one in the other split and were left out of the later "
            "one"
        )
    num_annotations = max(listing.account.annotations, len(listing.problems))
    set_aside = {
        "images": [tally.aside, len(records)],
        "annotations": [len(listing.problems), num_annotations],
    }
    return {
        "images": tally.images,
        "bytes": tally.bytes_after,
        "classes": dict(sorted(total.items())) if with_classes else None,
        "boxes": tally.boxes if records.knows("objects") else None,
        "captions": tally.captions if records.knows("captions") else None,
        "kind": listing.kind,
        "recognised_as": masked(listing.told),
        "quarantined": len(problems),
        "quarantine_reasons": dict(
            Counter(_short(reason) for _, reason in problems).most_common(MAX_REASONS)
        ),
        "splits": {split: sum(labels.values()) for split, labels in sorted(tally.counts.items()) if split},
        "notes": [masked(note) for note in notes],
        "ledger": ledger.as_json(),
        "set_aside": set_aside,
        "stopped": too_many(set_aside, max_set_aside),
        "bytes_before_scaling": tally.bytes_before if is_changed else None,
        "duplicates": tally.duplicates if taking.drop_duplicates else None,
    }


def too_many(set_aside: Mapping[str, Sequence[int]], max_fraction: float) -> str | None:
    """What to do where too large a fraction of the images or annotations was set aside, else None.

    Args:
        set_aside: of each kind how many, and among how many.
    """
    for what, (num, among) in set_aside.items():
        if num > max_fraction * among:
            return (
                f"{num} of {among} {what} were set aside, more than --max-set-aside={max_fraction:g} "
                f"allows; {QUARANTINE} gives the reason for each. Fix them and import again with "
                "--overwrite, or allow more; the shards are kept so that you can look at them"
            )
    return None


def _short(reason: str) -> str:
    return "duplicate" if reason.startswith("a duplicate of") else reason.split(":")[0]


def describe_import(summary: dict[str, Any], dest: str) -> str:
    """The summary in a few lines for the terminal."""
    lines = [
        f"packed {summary['images']} images ({summary['bytes'] / 2**20:.1f} MiB) into {summary['shards']} "
        f"shard{'s'[: summary['shards'] != 1]} in {duration(summary['seconds'])}: {dest}"
    ]
    if summary["bytes_before_scaling"]:
        fraction = summary["bytes"] / summary["bytes_before_scaling"]
        before = summary["bytes_before_scaling"] / 2**20
        saved = f"scaling down saved {1 - fraction:.0%} of {before:.1f} MiB"
        grown = f"stored decoded, {fraction:.1f} times the {before:.1f} MiB before"
        lines.append(f"  {grown if summary['decoded'] else saved}")
    if summary["splits"]:
        lines.append("  " + ", ".join(f"{split}: {num}" for split, num in summary["splits"].items()))
    if summary["classes"] is not None:
        classes = sorted(summary["classes"].items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{name} {num}" for name, num in classes[:20])
        more = f", and {len(classes) - 20} more" if len(classes) > 20 else ""
        lines.append(f"  {len(classes)} classes: {shown}{more}")
    lines.extend(f"  {summary[name]} {name}" for name in ("boxes", "captions") if summary[name] is not None)
    if summary["recognised_as"]:
        lines.append(f"  recognised as {summary['recognised_as']}")
    if summary["quarantined"]:
        reasons = ", ".join(f"{reason} {num}" for reason, num in summary["quarantine_reasons"].items())
        lines.append(
            f"warning: {summary['quarantined']} entries set aside ({reasons}); listed in "
            f"{storage.join(dest, QUARANTINE)}"
        )
    lines.extend(f"note: {note}" for note in summary["notes"])
    lines += as_table(summary["ledger"])
    return "\n".join(lines)
