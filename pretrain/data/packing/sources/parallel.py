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


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int, *, at_once: int = 1
) -> Iterator[Result]:
    """`function` of all items by a pool of threads, in their order, with a bounded number on the way.

    `at_once`: items that a thread takes together.
    """
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="import")
    rest = iter(items)

    def of_some(some: list[Item]) -> list[Result]:
        return [function(item) for item in some]

    def submitted(num: int) -> Iterator[Future[list[Result]]]:
        for _ in range(num):
            if some := list(islice(rest, at_once)):
                yield pool.submit(of_some, some)

    on_the_way = deque(submitted(4 * num_threads))
    try:
        while on_the_way:
            yield from on_the_way.popleft().result()
            on_the_way.extend(submitted(1))
    finally:
        # an interrupt does not wait for reads that are being tried again
        pool.shutdown(wait=False, cancel_futures=True)
