"""From images to records by batches: threads decode, the model predicts, bad images are reported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from cluster.secrets import masked_url
from finetune.predicting.following import Follower
from finetune.predicting.records import record_of
from finetune.predicting.sources import Clip, Item
from finetune.tasks.base import Predictor
from pretrain.data.images.decode import BadImage
from pretrain.data.reading.loader import fill_one

# each clip with its images and their records, in order
Stream = Iterable[tuple[Clip, Iterable[tuple[Item, dict[str, Any]]]]]


def followed(stream: Stream, followers: Sequence[Follower]) -> Iterator[dict[str, Any]]:
    """The records of a stream, each when all followers have taken it in."""
    for clip, records in stream:
        for follower in followers:
            follower.begin(clip)
        for item, record in records:
            for follower in followers:
                follower.take(item, record)
            yield record
        for follower in followers:
            follower.end()


class Begun(NamedTuple):
    """A batch in decoding: its images, what they fill, and for each a job that says why it is bad."""

    items: Sequence[Item]
    filling: Any
    jobs: Sequence[Future[str | None]]


def begin(predictor: Predictor, items: Sequence[Item], pool: ThreadPoolExecutor) -> Begun:
    """Starts to decode a batch in the threads of a pool."""
    numbers = np.arange(len(items))
    filling = predictor.transform.begin(numbers, numbers)
    jobs = [pool.submit(_fill, filling, index, item, predictor.channels) for index, item in enumerate(items)]
    return Begun(items, filling, jobs)


def records_of(predictor: Predictor, begun: Begun) -> list[dict[str, Any]]:
    """The record of each image; one that cannot be decoded has the reason under `error`, no result."""
    errors = [job.result() for job in begun.jobs]
    good = [index for index, error in enumerate(errors) if error is None]
    results: Iterator[Any] = iter(())
    if good:
        geometry = begun.filling.geometry_VB5
        geometry = None if geometry is None else geometry[:, good]
        results = iter(predictor.results([array[good] for array in begun.filling.arrays], geometry))
    records = []
    for item, error in zip(begun.items, errors, strict=True):
        origin = {
            "source": masked_url(item.source),
            "index": item.index,
            "seconds": item.seconds,
            "error": error,
        }
        records.append(origin if error is not None else origin | record_of(next(results)))
    return records


def predicted(
    predictor: Predictor, items: Iterable[Item], *, batch_size: int, decode_threads: int
) -> Iterator[tuple[Item, dict[str, Any]]]:
    """Each image with its record, in order (see `records_of`).

    The next batch is read and decoded while the model works on this one.
    """
    source = iter(items)
    with ThreadPoolExecutor(decode_threads, thread_name_prefix="decode") as pool:
        ahead = begin(predictor, list(islice(source, batch_size)), pool)
        while ahead.items:
            now, ahead = ahead, begin(predictor, list(islice(source, batch_size)), pool)
            yield from zip(now.items, records_of(predictor, now), strict=True)


def _fill(filling: Any, index: int, item: Item, channels: int) -> str | None:
    """Why an image cannot be used, or None."""
    try:
        fill_one(filling, index, item.data if item.data is None else item.encoded(channels))
    except BadImage as error:
        return str(error)
    return None
