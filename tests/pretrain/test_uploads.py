"""Batches on their way to a GPU, without one: the thread that uploads chooses its
device before it does anything else.
"""

import contextlib
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pretrain.training import feeding
from tests.pretrain.fake_cuda import FakeEvent


class FakeStream:
    """A CUDA stream on which events are waited for."""

    def wait_event(self, event):
        """Does nothing."""


def test_the_uploading_thread_makes_no_context_on_gpu_0(monkeypatch):
    """torch makes a context on a thread's current device when it enters a stream,
    and threads begin on GPU 0.
    """
    current, entered = threading.local(), []

    @contextlib.contextmanager
    def stream(_):
        entered.append(getattr(current, "device", torch.device("cuda", 0)))
        yield

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(current, "device", device))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream())
    monkeypatch.setattr(torch.cuda, "Event", type("Event", (FakeEvent,), {"record": lambda *_: None}))
    monkeypatch.setattr(
        feeding.Uploader, "_copied", lambda self, array: SimpleNamespace(record_stream=lambda _: None)
    )

    class Loader:
        def __init__(self):
            self.left = 3

        def __next__(self):
            if not self.left:
                raise StopIteration
            self.left -= 1
            return SimpleNamespace(arrays=[np.zeros(1)], parameters=None)

        def close(self):
            """Nothing to close."""

    uploader = feeding.Uploader(Loader(), torch.device("cuda", 3))
    for _ in range(3):
        next(uploader)
    with pytest.raises(StopIteration):
        next(uploader)
    uploader.close()
    assert entered == [torch.device("cuda", 3)] * 3
