"""Every row of a data set once, in file order and decoded, for evaluation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pretrain.data.images.decode import BadImage
from pretrain.data.reading.loader import BadRow, Batch, Filling, HostTransform, fill_one
from pretrain.data.reading.shards import Rows, Shards, read_in_sequence

Started = tuple[Batch, list[Future[BadRow | None]]]  # a batch, and what is decoding its images


def batches_in_sequence(
    shards: Shards,
    transform: HostTransform,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    decode_threads: int = 1,
    with_bad: bool = False,
) -> Iterator[Batch]:
    """Every good row of the data set once, in file order, for evaluation; the last batch may be smaller.

    Bad rows are listed in the batch in which they would have been, and left out of it. `with_bad` leaves
    them in, where their `arrays` mean nothing. Two batches are decoded ahead.
    """
    pieces = read_in_sequence(shards, rank=rank, world_size=world_size)
    with ThreadPoolExecutor(decode_threads, thread_name_prefix="decode") as pool:
        ahead: deque[Started] = deque()
        for rows in _in_batches(pieces, batch_size):
            ahead.append(_start(rows, shards.columns, transform, pool))
            if len(ahead) > 2:
                yield _finished(*ahead.popleft(), with_bad=with_bad)
        for started in ahead:
            yield _finished(*started, with_bad=with_bad)


def _in_batches(pieces: Iterable[Rows], batch_size: int) -> Iterator[list[tuple[Rows, int]]]:
    rows: list[tuple[Rows, int]] = []
    for piece in pieces:
        rows.extend((piece, position) for position in range(len(piece)))
        while len(rows) >= batch_size:
            yield rows[:batch_size]
            del rows[:batch_size]
    if rows:
        yield rows


def _start(
    rows: list[tuple[Rows, int]], columns: Sequence[str], transform: HostTransform, pool: ThreadPoolExecutor
) -> Started:
    row_ids = np.array([piece.row_ids[position] for piece, position in rows], dtype=np.int64)
    passes = np.zeros(len(rows), dtype=np.int64)
    filling = transform.begin(passes, row_ids)
    batch = Batch(
        row_ids=row_ids,
        passes=passes,
        arrays=filling.arrays,
        columns={name: [piece.columns[name][position] for piece, position in rows] for name in columns},
        geometry_VB5=filling.geometry_VB5,
    )
    return batch, [pool.submit(_fill, filling, index, *row) for index, row in enumerate(rows)]


def _fill(filling: Filling, index: int, piece: Rows, position: int) -> BadRow | None:
    try:
        fill_one(filling, index, piece.images[position])
    except BadImage as error:
        return BadRow(piece.row_ids[position], str(error))
    return None


def _finished(batch: Batch, jobs: list[Future[BadRow | None]], *, with_bad: bool) -> Batch:
    results = [job.result() for job in jobs]
    good = [index for index, bad in enumerate(results) if bad is None]
    batch.bad_rows = [bad for bad in results if bad is not None]
    if batch.bad_rows and not with_bad:
        batch.row_ids, batch.passes = batch.row_ids[good], batch.passes[good]
        batch.arrays = [array[good] for array in batch.arrays]
        if batch.geometry_VB5 is not None:
            batch.geometry_VB5 = batch.geometry_VB5[:, good]
        batch.columns = {name: [values[i] for i in good] for name, values in batch.columns.items()}
    return batch
