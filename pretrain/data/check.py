"""What is in a data set: files, row groups, columns, and how a sample of its images decodes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from cluster import storage
from cluster.errors import UserError
from pretrain.data.decode import BadImage, decode_image, image_format
from pretrain.data.footers import class_names_in, read_footer
from pretrain.data.manifest import Manifest, load_manifest
from pretrain.data.order import Segment
from pretrain.data.progress import ProgressLine
from pretrain.data.reader import Rows, Shards

MAX_GROUP_BYTES, MAX_GROUP_ROWS = 64 * 2**20, 5000  # above these a shuffle window reaches few row groups
LABEL_COLUMN = "label"
NUM_BAD_LISTED = 20
NUM_CLASSES_SHOWN = 20


def check(
    url: str, image_column: str = "image", max_rows: int | None = 1000, *, show_progress: bool = False
) -> dict[str, Any]:
    """Looks at a data set and returns what it found, ready for JSON.

    Args:
        url: file, folder or glob.
        image_column: holds the encoded images.
        max_rows: images to decode, spread evenly over the rows; None decodes all.

    Raises:
        UserError: for everything that is wrong with whole files, naming the file.
    """
    manifest = load_manifest(url, image_column=image_column)
    schema = read_footer(manifest.files[0]).schema
    report = {
        "url": url,
        "fingerprint": manifest.fingerprint,
        "files": len(manifest.files),
        "bytes": sum(file.size_bytes for file in manifest.files),
        "rows": manifest.num_rows,
        "row_groups": _describe_groups(manifest),
        "columns": {field.name: str(field.type) for field in schema},
        "labels": _label_counts(manifest, schema) if LABEL_COLUMN in schema.names else None,
    }
    num_sampled = manifest.num_rows if max_rows is None else min(max_rows, manifest.num_rows)
    # the middle of each of num_sampled equal stretches
    row_ids = (np.arange(num_sampled, dtype=np.int64) * 2 + 1) * manifest.num_rows // (2 * num_sampled)
    shards = Shards(manifest, image_column=image_column)
    with ProgressLine("decoding", num_sampled, shown=show_progress) as progress:
        return {**report, **_decode_sample(shards, row_ids, progress)}


def _describe_groups(manifest: Manifest) -> dict[str, Any]:
    rows, sizes = manifest.rows_of_group, manifest.bytes_of_group
    advice = []
    if rows.max() > MAX_GROUP_ROWS or sizes.max() > MAX_GROUP_BYTES:
        advice.append(
            f"row groups of up to {rows.max()} rows and {_mib(sizes.max())} mix badly and need memory; write them with at most "
            "a few hundred rows (pyarrow: row_group_size=64)"
        )
    if len(rows) < 8 and manifest.num_rows > MAX_GROUP_ROWS:
        advice.append(
            f"{len(rows)} row groups are too few to shuffle {manifest.num_rows} rows or to share among workers"
        )
    if len(manifest.files) > 1 and sum(file.size_bytes for file in manifest.files) / len(manifest.files) < 2**20:
        advice.append("files of less than 1 MiB each make start-up slow; 100 to 500 MiB are better")
    return {
        "count": len(rows),
        "rows": _spread(rows),
        "image_bytes": _spread(sizes),
        "suits_shuffling": not advice,
        "advice": advice,
    }


def _spread(values: Any) -> dict[str, int]:
    array = np.asarray(values)
    return {"min": int(array.min()), "median": int(np.median(array)), "max": int(array.max())}


def _label_counts(manifest: Manifest, schema: pa.Schema) -> dict[str, int] | None:
    """Rows of each label, most frequent first, by class name where the file knows it; None for labels of another kind."""
    kind = schema.field(LABEL_COLUMN).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        return None
    counts: Counter[Any] = Counter()
    for file in manifest.files:
        with storage.open_input(file.url) as source:
            column = pq.ParquetFile(source).read(columns=[LABEL_COLUMN]).column(0)
        for pair in pc.value_counts(column).to_pylist():
            counts[pair["values"]] += pair["counts"]
    names = class_names_in(schema, LABEL_COLUMN) or []

    def name_of(value: Any) -> str:
        if value is None:
            return "(null)"
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else str(value)

    return {name_of(value): num for value, num in sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))}


def _decode_sample(shards: Shards, row_ids: np.ndarray, progress: ProgressLine) -> dict[str, Any]:
    formats: Counter[str] = Counter()
    widths: list[int] = []
    heights: list[int] = []
    bad: list[dict[str, Any]] = []
    num_bad = 0
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="check") as pool:
        for piece in _pieces_with(shards, row_ids):
            for row_id, (form, size, reason) in zip(piece.row_ids, pool.map(_look_at, piece.images), strict=True):
                progress.advance()
                if size is None:
                    num_bad += 1
                    if len(bad) < NUM_BAD_LISTED:
                        place = shards.place(row_id)
                        bad.append(
                            {"file": place.file, "row_group": place.row_group, "row": place.row, "reason": reason}
                        )
                    continue
                formats[form] += 1
                widths.append(size[0])
                heights.append(size[1])
    return {
        "decoded": len(row_ids),
        "formats": dict(formats.most_common()),
        "width": _spread(widths) if widths else None,
        "height": _spread(heights) if heights else None,
        "bad": num_bad,
        "bad_rows": bad,
    }


def _pieces_with(shards: Shards, row_ids: np.ndarray) -> Iterator[Rows]:
    """The rows with these ascending ids, piece by piece; of each row group only what they span is read."""
    groups, rows = shards.manifest.locate(row_ids)
    for group in np.unique(groups):
        wanted_rows = rows[groups == group]
        wanted = set(row_ids[groups == group].tolist())
        for piece in shards.read(Segment(int(group), int(wanted_rows[0]), int(wanted_rows[-1]) + 1)):
            chosen = [index for index, row_id in enumerate(piece.row_ids) if row_id in wanted]
            yield Rows([piece.row_ids[i] for i in chosen], [0] * len(chosen), [piece.images[i] for i in chosen], {})


def _look_at(image: pa.Buffer | None) -> tuple[str, tuple[int, int] | None, str]:
    """(format, (width, height) or None when it is bad, why it is bad)."""
    if image is None:
        return "", None, "null"
    data = image.to_pybytes()
    try:
        height, width, _ = decode_image(data).shape
    except BadImage as error:
        return "", None, str(error)
    return image_format(data) or "", (width, height), ""


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Prints what `check` found, with advice and warnings below."""
    console = console or Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    groups, table = report["row_groups"], Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("data", report["url"])
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
        table.add_row("column", f"{name}: {kind}")
    if report["labels"] is not None:
        shown = [f"{name} {num}" for name, num in list(report["labels"].items())[:NUM_CLASSES_SHOWN]]
        more = f", and {len(report['labels']) - len(shown)} more" if len(report["labels"]) > len(shown) else ""
        table.add_row("labels", f"{len(report['labels'])}: {', '.join(shown)}{more}")
    table.add_row("decoded", f"{report['decoded']} of {report['rows']} rows, {report['bad']} bad")
    if report["formats"]:
        table.add_row("formats", ", ".join(f"{name} {num}" for name, num in report["formats"].items()))
        for side in ("width", "height"):
            table.add_row(side, "{min} to {max} pixels, median {median}".format(**report[side]))
    console.print(table)
    for advice in groups["advice"]:
        console.print(f"advice: {advice}")
    if report["bad"]:
        console.print(f"warning: {report['bad']} of {report['decoded']} rows cannot be decoded")
        for row in report["bad_rows"]:
            console.print(
                f"  {row['file']} row group {row['row_group']} row {row['row']}: {row['reason']}", markup=False
            )
        if report["bad"] > len(report["bad_rows"]):
            console.print(f"  ... and {report['bad'] - len(report['bad_rows'])} more")


def parse_rows(text: str) -> int | None:
    """The value of --rows: a number above 0, or `all` (None). Raises UserError."""
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--rows must be a whole number above 0 or 'all', not {text!r}")
    return int(text)


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
