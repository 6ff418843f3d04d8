"""Many small reads by a pool of threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

REMOTE_THREADS = 32

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """`function` of all items by a pool of threads, in their order, with a bounded number on the way."""
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="import")
    rest = iter(items)
    on_the_way: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(rest, 4 * num_threads))
    try:
        while on_the_way:
            yield on_the_way.popleft().result()
            on_the_way.extend(pool.submit(function, item) for item in islice(rest, 1))
    finally:
        pool.shutdown(
            wait=False, cancel_futures=True
        )  # an interrupt does not wait for reads that are being tried again
