"""Batches on their way to the module: uploads to an accelerator beside the training,
then what the device does to them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pretrain.data.reading.loader import Batch, Loader, NoGoodRow, bad_rows_in_words, put_until
from pretrain.data.reading.shards import Shards
from pretrain.training.contract import TrainingBatch, UnusableRows

BATCHES_ON_DEVICE = 2


def uploaded(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array of the host on a device, for the thread that launches kernels.

    CUDA copies from memory that is not page-locked only when the stream has come as far, and the thread
    would wait; so the array is copied to page-locked memory first. On the CPU the memory is the array's.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class TrainingBatches:
    """A loader's batches, made into a module's input on the training device by `to_inputs`."""

    def __init__(
        self, loader: Loader, shards: Shards, to_inputs: Callable[[Batch], Any], device: torch.device
    ) -> None:
        self._shards, self._to_inputs = shards, to_inputs
        self._batches = Uploader(loader, device) if device.type == "cuda" else loader

    def __next__(self) -> TrainingBatch:
        try:
            batch = next(self._batches)
        except NoGoodRow as error:
            raise UnusableRows(str(error), bad_rows_in_words(error.bad_rows, self._shards)) from error
        return TrainingBatch(self._to_inputs(batch), bad_rows_in_words(batch.bad_rows, self._shards))

    def close(self) -> None:
        """Frees threads and files."""
        self._batches.close()


class Uploader:
    """A loader's batches with `arrays` and `parameters` on a CUDA device,
    the next one copied while this one is used.

    A thread of its own waits for the loader and starts the copies on a stream of its own, so that the thread
    that launches kernels does neither. The loader's arrays lie in page-locked memory, see `RandomViews`;
    copies from other memory work, but keep this thread waiting.
    """

    def __init__(self, loader: Loader, device: torch.device) -> None:
        self._loader, self._device = loader, device
        self._stream = torch.cuda.Stream(device)
        self._queue: queue.Queue[tuple[Batch, torch.cuda.Event] | BaseException] = queue.Queue(
            BATCHES_ON_DEVICE - 1
        )
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._upload, name="uploads", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._put(item)  # so that a second call raises as well
            raise item
        batch, copied = item
        now = torch.cuda.current_stream(self._device)
        now.wait_event(copied)
        for tensor in [*batch.arrays, *(batch.parameters or [])]:
            tensor.record_stream(now)  # else its memory could be given to the next upload
        return batch

    def close(self) -> None:
        """Stops the thread and closes the loader."""
        self._closed.set()
        self._loader.close()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def _upload(self) -> None:
        try:
            # a thread begins on GPU 0, whose memory would hold a context for each rank of the machine
            torch.cuda.set_device(self._device)
            while not self._closed.is_set():
                batch = next(self._loader)
                with torch.cuda.stream(self._stream):
                    batch.arrays = [self._copied(array) for array in batch.arrays]
                    if batch.parameters is not None:
                        batch.parameters = [self._copied(array) for array in batch.parameters]
                    copied = torch.cuda.Event()
                    copied.record(self._stream)
                self._put((batch, copied))
        except BaseException as error:  # handed to the training thread, which raises it
            self._put(error)

    def _copied(self, array: Any) -> torch.Tensor:
        return torch.as_tensor(array).to(self._device, non_blocking=True)

    def _put(self, item: Any) -> None:
        put_until(self._closed, self._queue, item)
