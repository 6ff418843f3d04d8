"""A pool of buffers: memory of batches that is used again for later batches."""

from __future__ import annotations

from typing import Any

import numpy as np


class BufferPool:
    """Gives memory for batches and takes it back once nobody holds the array any more,
    nor a view or tensor of it.

    The system clears each page that it hands out, which for a batch of crops takes a tenth of the time that
    decoding and cropping them does. As much memory is kept as was in use at once.
    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}  # by size in bytes

    def __reduce__(self) -> tuple[Any, ...]:
        return BufferPool, ()  # memory does not go along to other processes

    def array(self, shape: tuple[int, ...], dtype: Any = np.uint8, *, pinned: bool = False) -> np.ndarray:
        """An array whose values mean nothing yet, page-locked when `pinned`."""
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if pinned:
            import torch

            # the caching allocator gives a block away again only when the copies from it are done
            return (
                torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True).numpy().view(dtype).reshape(shape)
            )
        free = self._free.setdefault(num_bytes, [])
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(num_bytes, np.uint8)
        return np.asarray(_Loan(memory, free)).view(dtype).reshape(shape)


class _Loan:
    """What numpy holds on to while an array or a part of it is alive; then the memory is free again."""

    def __init__(self, memory: np.ndarray, free: list[np.ndarray]) -> None:
        self._memory, self._free = memory, free
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._free.append(self._memory)
