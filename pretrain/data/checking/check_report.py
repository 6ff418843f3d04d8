"""Prints what `pretrain.data.checking.check` found. Text out of the data is made safe for terminals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster import errors
from pretrain.data.checking.row_groups import mates_in_words

NUM_CLASSES_SHOWN = 20
NUM_CHARACTERS_SHOWN = 200


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Prints a report of `check`, with advice and warnings below."""
    console = console or Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    groups, table = report["row_groups"], Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("data", printable(report["url"]))
    table.add_row("files", f"{report['files']} ({_mib(report['bytes'])})")
    table.add_row("rows", str(report["rows"]))
    verdict = "good for shuffled reading" if groups["suits_shuffling"] else "see the advice below"
    rows, sizes = groups["rows"], groups["image_bytes"]
    table.add_row(
        "row groups",
        f"{groups['count']}, of {rows['min']} to {rows['max']} rows (median {rows['median']}) "
        f"and up to {_mib(sizes['max'])}; {verdict}",
    )
    for name, kind in report["columns"].items():
        table.add_row("column", f"{printable(name)}: {printable(kind)}")
    for name, classes in report["labels"].items():
        table.add_row(printable(name), _classes_in_words(classes))
    table.add_row("decoded", f"{report['decoded']} of {report['rows']} rows, {report['bad']} bad")
    if report["formats"]:
        table.add_row("formats", _counts_in_words(report["formats"]))
        for side in ("width", "height"):
            table.add_row(side, "{min} to {max} pixels, median {median}".format(**report[side]))
    table.add_row(
        "duplicates", f"{report['duplicates']} of {report['decoded']} rows have the bytes of an earlier one"
    )
    if report["captions"] is not None:
        table.add_row(printable(report["captions"]["column"]), _captions_in_words(report["captions"]))
    if report["boxes"] is not None:
        table.add_row(printable(report["boxes"]["column"]), _boxes_in_words(report["boxes"]))
    console.print(table)
    for advice in [*groups["advice"], *(report["boxes"]["advice"] if report["boxes"] is not None else [])]:
        console.print(f"advice: {printable(advice)}")
    if (mates := mates_in_words(groups, report["image_bytes"] / report["rows"])) is not None:
        console.print(f"note: {mates}")
    if report["few_bits"]:
        console.print(
            f"note: {report['few_bits']} 16-bit images use 12 bits or fewer and are scaled to those"
        )
    for note in report["notes"]:
        console.print(f"note: {printable(note)}")
    for reason in report["passed_over"]:
        console.print(f"note: not looked at: {printable(reason)}")
    if report["bad"]:
        _print_rows(
            console,
            f"warning: {report['bad']} of {report['decoded']} rows cannot be decoded",
            report["bad_rows"],
            report["bad"],
        )
    if report["bad_annotations"]:
        what = f"warning: {report['bad_annotations']} annotations cannot be used"
        _print_rows(console, what, report["bad_annotation_rows"], report["bad_annotations"])
    if report["duplicates"]:
        what = f"note: {report['duplicates']} duplicates; `--fix DEST --drop-duplicates` leaves them out"
        _print_rows(console, what, report["duplicate_rows"], report["duplicates"])


def print_fix(summary: dict[str, Any]) -> None:
    """Prints what `pretrain.data.packing.regroup` did."""
    rows = summary["row_groups"]["rows"]
    print(
        f"wrote {summary['rows_written']} of {summary['rows']} rows to {summary['dest']}: "
        f"{summary['shards']} shards ({_mib(summary['bytes'])}), row groups of up to {rows['max']} rows"
    )
    if summary["rows_written"] < summary["rows"]:
        dropped = f"{summary['dropped_bad']} bad rows and {summary['dropped_duplicates']} duplicates"
        print(f"left out {dropped}; they are listed in {summary['dropped_list']}")


def printable(text: str) -> str:
    """Text that does nothing to a terminal, cut when it is long."""
    return errors.printable(text if len(text) <= NUM_CHARACTERS_SHOWN else f"{text[:NUM_CHARACTERS_SHOWN]}…")


def _print_rows(console: Console, what: str, rows: list[dict[str, Any]], num: int) -> None:
    console.print(what)
    for row in rows:
        parts = [_location_in_words(row)]
        if "column" in row:
            parts.append(printable(row["column"]))
        reason = (
            printable(row["reason"]) if "reason" in row else f"same as {_location_in_words(row['same_as'])}"
        )
        console.print(f"  {', '.join(parts)}: {reason}")
    if num > len(rows):
        console.print(f"  ... and {num - len(rows)} more")


def _location_in_words(row: Mapping[str, Any]) -> str:
    return f"{printable(row['file'])} row group {row['row_group']} row {row['row']}"


def _classes_in_words(classes: dict[str, Any]) -> str:
    parts = [f"{classes['classes']}: {_counts_in_words(classes['counts'])}"]
    if classes["is_list"]:
        parts.append(f"{classes['values']} in all, {classes['rows_without']} rows without")
    return "; ".join(parts)


def _captions_in_words(captions: dict[str, Any]) -> str:
    length = ""
    if captions["captions"]:
        length = (
            f" of {captions['mean_characters']:.0f} characters ({captions['mean_words']:.1f} words) on "
            "average"
        )
    return (
        f"{captions['captions']} captions{length}; {captions['rows_with']} rows with, "
        f"{captions['rows_without']} without; {captions['empty']} empty"
    )


def _boxes_in_words(boxes: dict[str, Any]) -> str:
    classes = f": {_counts_in_words(boxes['classes'])}" if boxes["classes"] else ""
    return (
        f"{boxes['boxes']} boxes{classes}; up to {boxes['max_per_row']} a row, {boxes['rows_without']} "
        f"rows without; {boxes['outside']} reach beyond the image, {boxes['degenerate']} without area"
        + (f"; {boxes['crowds']} crowd regions are left out" if boxes["crowds"] else "")
    )


def _counts_in_words(counts: dict[str, int]) -> str:
    shown = [f"{printable(name)} {num}" for name, num in list(counts.items())[:NUM_CLASSES_SHOWN]]
    return ", ".join(shown) + (f", and {len(counts) - len(shown)} more" if len(counts) > len(shown) else "")


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
