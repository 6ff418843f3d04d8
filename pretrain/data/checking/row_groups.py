"""Row groups of a data set, and whether shuffled reading likes them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from pretrain.data.reading.manifest import Manifest
from pretrain.data.reading.order import Order, default_num_streams

MAX_GROUP_BYTES, MAX_GROUP_ROWS = 64 * 2**20, 5000  # above these a shuffle window reaches few row groups
BATCH_SIZES = (256, 1024, 4096)
# `data.shuffle_window_rows` as it is by default, and how much wider a window is looked at
WINDOW_ROWS, WIDER = 8192, 8
NUM_WINDOWS = 3  # whose batches are looked at; the first one of a stream is shortened
MANY_MATES = 1.0


def describe_groups(manifest: Manifest) -> dict[str, Any]:
    """Row groups and whether shuffled reading likes them; `advice` says what to do where it does not.

    `mates`: for each usual batch size how many rows of its own row group a row meets in a batch, by default,
    with a wider window, and were all rows shuffled freely.
    """
    rows, sizes = manifest.rows_of_group, manifest.bytes_of_group
    advice = []
    if rows.max() > MAX_GROUP_ROWS or sizes.max() > MAX_GROUP_BYTES:
        advice.append(
            f"row groups of up to {rows.max()} rows and {sizes.max() / 2**20:.1f} MiB shuffle badly and "
            "need memory; write them with at most a few hundred rows: `check URL --fix DEST` does so "
            "(pyarrow: row_group_size=64)"
        )
    if len(rows) < 8 and manifest.num_rows > MAX_GROUP_ROWS:
        advice.append(
            f"{len(rows)} row groups are too few to shuffle {manifest.num_rows} rows or to share among "
            "workers"
        )
    if (
        len(manifest.files) > 1
        and sum(file.size_bytes for file in manifest.files) / len(manifest.files) < 2**20
    ):
        advice.append("files of less than 1 MiB each make start-up slow; 100 to 500 MiB are better")
    return {
        "count": len(rows),
        "rows": spread(rows),
        "image_bytes": spread(sizes),
        "suits_shuffling": not advice,
        "advice": advice,
        "mates": {
            str(size): {
                "window": round(num_mates(rows, size), 2),
                "wider_window": round(num_mates(rows, size, window_rows=WIDER * WINDOW_ROWS), 2),
                "shuffled_freely": round(num_mates_of_all(rows, size), 2),
            }
            for size in BATCH_SIZES
            if size <= manifest.num_rows
        },
    }


def mates_in_words(groups: dict[str, Any], mean_bytes: float) -> str | None:
    """What near neighbours in batches mean where there are many of them, else None.
    `mean_bytes`: of a row's image.
    """
    mates = groups["mates"]
    if not any(each["window"] > max(MANY_MATES, 2 * each["shuffled_freely"]) for each in mates.values()):
        return None
    numbers = {
        name: ", ".join(f"{each[name]:g}" for each in mates.values())
        for name in ("window", "wider_window", "shuffled_freely")
    }
    return (
        f"in a batch of {', '.join(mates)} a row meets {numbers['window']} rows of its own row group on "
        f"average ({numbers['shuffled_freely']} if all rows were shuffled freely). Where rows of a row "
        "group are alike (data sorted by class, frames of a video), these are near negatives. "
        f"data.shuffle_window_rows={WIDER * WINDOW_ROWS} makes it {numbers['wider_window']}, for "
        f"{WIDER * WINDOW_ROWS * mean_bytes / 2**30:.1f} GiB in the memory of all workers"
    )


def num_mates(rows_of_group: np.ndarray, batch_size: int, *, window_rows: int = WINDOW_ROWS) -> float:
    """Other rows of a row's own row group in a batch, on average over the batches of the first windows."""
    order = Order(
        rows_of_group,
        batch_size_global=batch_size,
        num_streams=default_num_streams(batch_size),
        window_rows=window_rows,
        seed=0,
    )
    by_stream = [_groups_taken(order, stream) for stream in range(order.num_streams)]
    per_step = order.rows_per_step_and_stream
    mates = []
    for step in range(min(map(len, by_stream)) // per_step):
        batch = np.concatenate([groups[step * per_step : (step + 1) * per_step] for groups in by_stream])
        _, counts = np.unique(batch, return_counts=True)
        mates.append((counts * (counts - 1)).sum() / batch_size)
    return float(np.mean(mates))


def num_mates_of_all(rows_of_group: np.ndarray, batch_size: int) -> float:
    """What `num_mates` would be if all rows were shuffled freely."""
    num_rows, rows = int(rows_of_group.sum()), rows_of_group.astype(np.float64)
    return float((batch_size - 1) * (rows * (rows - 1)).sum() / (num_rows * max(1, num_rows - 1)))


def _groups_taken(order: Order, stream: int) -> np.ndarray:
    """The row groups of a stream's first rows, in the order in which these are taken."""
    bounds = order.window_bounds(stream)[: NUM_WINDOWS + 1].tolist()
    segments = order.segments(0, stream, stop=bounds[-1])
    groups = np.repeat(
        [segment.group for segment in segments], [segment.stop - segment.start for segment in segments]
    )
    for window, (start, stop) in enumerate(itertools.pairwise(bounds)):
        groups[start:stop] = groups[start:stop][order.window_order(0, stream, window, stop - start)]
    return groups


def spread(values: Any) -> dict[str, int]:
    """Smallest, median and largest, as whole numbers."""
    array = np.asarray(values)
    return {"min": int(array.min()), "median": int(np.median(array)), "max": int(array.max())}
