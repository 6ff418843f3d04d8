"""What runs in each replica: Serve gathers items of many requests into batches,
and threads compute their answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import ray.cloudpickle
from ray import serve

from cluster.process import set_up_process
from cluster.serving.replicas import BATCHES_AT_ONCE

Compute = Callable[[Sequence[Any]], Sequence[Any]]


class Replica:
    """Holds what `make`, which comes pickled, gives: a function from a batch of items to as many answers. It
    is called in threads, by up to `BATCHES_AT_ONCE` at once."""

    def __init__(self, make: bytes, max_batch_size: int, batch_wait_seconds: float) -> None:
        set_up_process()  # before the module of what is made loads torch
        self._compute: Compute = ray.cloudpickle.loads(make)()
        self._num_computing = 0
        self._changed = asyncio.Event()
        batched: Any = self._batch
        batched.set_max_batch_size(max_batch_size)
        batched.set_batch_wait_timeout_s(batch_wait_seconds)

    async def ask(self, items: Sequence[Any]) -> list[tuple[Any, int]]:
        """The answer to each item of a request, and the size of the batch that it was in."""
        # Serve forms batches of what comes within the waiting time, also while others are computed: what
        # waits here until one of those is done makes fewer and larger batches
        while self._num_computing >= BATCHES_AT_ONCE:
            await self._changed.wait()
        return list(await asyncio.gather(*map(self._batch, items)))

    @serve.batch(max_concurrent_batches=BATCHES_AT_ONCE)
    async def _batch(self, items: list[Any]) -> list[tuple[Any, int]]:
        self._num_computing += 1
        self._changed.clear()
        try:
            answers = await asyncio.to_thread(self._compute, items)
        finally:
            self._num_computing -= 1
            self._changed.set()
        return [(answer, len(items)) for answer in answers]
