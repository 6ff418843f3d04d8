"""From images to records, batch by batch: threads decode and crop, the model predicts, and bad images are reported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np

from cluster.secrets import masked_url
from finetune.predicting.records import record_of
from finetune.predicting.sources import Item
from finetune.tasks.base import Predictor
from pretrain.data.images.decode import BadImage
from pretrain.data.reading.loader import fill_one


def predicted(
    predictor: Predictor, items: Iterable[Item], *, batch_size: int, decode_threads: int
) -> Iterator[tuple[Item, dict[str, Any]]]:
    """Each image with its record, in order; one that cannot be decoded has the reason under `error` and no result.

    The next batch is read and decoded while the model works on this one.
    """
    source = iter(items)
    with ThreadPoolExecutor(decode_threads, thread_name_prefix="decode") as pool:

        def begin() -> tuple[list[Item], Any, list[Any]]:
            some = list(islice(source, batch_size))
            numbers = np.arange(len(some))
            filling = predictor.transform.begin(numbers, numbers)
            jobs = [pool.submit(_fill, filling, index, item, predictor.channels) for index, item in enumerate(some)]
            return some, filling, jobs

        ahead = begin()
        while ahead[0]:
            (some, filling, jobs), ahead = ahead, begin()
            errors = [job.result() for job in jobs]
            good = [index for index, error in enumerate(errors) if error is None]
            results: Iterator[Any] = iter(())
            if good:
                geometry = None if filling.geometry_VB5 is None else filling.geometry_VB5[:, good]
                results = iter(predictor.results([array[good] for array in filling.arrays], geometry))
            for item, error in zip(some, errors, strict=True):
                origin = {
                    "source": masked_url(item.source),
                    "index": item.index,
                    "seconds": item.seconds,
                    "error": error,
                }
                yield item, origin if error is not None else origin | record_of(next(results))


def _fill(filling: Any, index: int, item: Item, channels: int) -> str | None:
    """Why an image cannot be used, or None."""
    try:
        fill_one(filling, index, item.data if item.data is None else item.encoded(channels))
    except BadImage as error:
        return str(error)
    return None
