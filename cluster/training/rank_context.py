"""What a training function knows about where it runs:
its rank, its device, and how to talk to the process that started it.

`local_context()` gives a `RankContext` in this process, without Ray; `cluster.training.workers.run_workers`
gives one to each worker. It holds no checkpoint: a training function finds the newest complete checkpoint in
its own run folder, because Ray's bookkeeping lags behind the storage when a worker dies.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Record = dict[str, Any]

STOPPING = "stopping after this step and writing a checkpoint; press Ctrl-C again to end at once"


def _send_nowhere(record: Record) -> None:
    """What `report` does when nobody listens."""


def _beat_nowhere(position: int) -> None:
    """What `beat` does when nobody listens."""


@dataclass
class RankContext:
    """One rank of a run. Ranks count from 0."""

    rank: int
    world_size: int
    device: torch.device
    attempt: int = 0  # 0 for the first start of this launch, then counts restarts
    restarts: tuple[str, ...] = ()  # why each earlier attempt of this launch ended, as far as known
    position_before: int | None = None  # the last `beat` that was heard of the attempt before
    silent_seconds: float = 0.0  # how long ago that was when this attempt began
    began: float = field(default_factory=time.monotonic)
    _send: Callable[[Record], None] = field(default=_send_nowhere, repr=False)
    _beat: Callable[[int], None] = field(default=_beat_nowhere, repr=False)
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _checkpoint: threading.Event = field(default_factory=threading.Event, repr=False)

    def report(self, record: Record) -> None:
        """Sends a small record to the process that started the run;
        only rank 0's arrive, in order, once each.

        Under Ray this never waits for the network. What arrives is what JSON makes of the record at this
        moment (tuples become lists). Raises TypeError for what JSON cannot hold, tensors among it,
        on every rank.
        """
        copied = json.loads(json.dumps(record))
        if self.rank == 0:
            self._send(copied)

    @property
    def device_name(self) -> str:
        """What computes: `cpu`, or a GPU by its name."""
        if self.device.type != "cuda":
            return self.device.type
        import torch

        return f"cuda, {torch.cuda.get_device_name(self.device)}"

    def note(self, text: str) -> None:
        """A line for the user who started the run."""
        self.report({"kind": "note", "text": text})

    def warn(self, text: str) -> None:
        """A line about what may be wrong."""
        self.report({"kind": "warning", "text": text})

    def beat(self, position: int) -> None:
        """A sign of life: how far the run is. The attempt after a failure is told the last one;
        cheap enough each step.
        """
        if self.rank == 0:
            self._beat(position)

    def stop_requested(self) -> bool:
        """True once Ctrl-C, SIGTERM or a preemption notice asks for an end:
        a flag in memory, cheap enough each step.

        Ranks may see it some steps apart: a loop must agree over ranks before it leaves.
        """
        return self._stop.is_set()

    def checkpoint_requested(self) -> bool:
        """True once for each time that a checkpoint is asked for, without an end; rank 0 only."""
        asked = self._checkpoint.is_set()
        self._checkpoint.clear()
        return asked

    def request_checkpoint(self) -> None:
        """Asks this rank for a checkpoint at its next step."""
        self._checkpoint.set()

    def request_stop(self) -> None:
        """Asks this rank to stop, as Ctrl-C does in-process (other ranks are not told)."""
        self._stop.set()


@contextmanager
def local_context(on_record: Callable[[Record], None] | None = None) -> Iterator[RankContext]:
    """A context in this process: rank 0 of 1, on the first CUDA device if there is one, else on the CPU.

    `on_record` is called within `report`. In the main thread the first SIGINT, SIGTERM or SIGHUP asks for a
    stop, a second SIGINT raises KeyboardInterrupt, and the former handlers come back at the end.
    """
    import torch

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    context = RankContext(rank=0, world_size=1, device=device, _send=on_record or _send_nowhere)
    with stop_signals(context.request_stop):
        yield context


@contextmanager
def stopped_by(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Gives the signals that ask for an end to `handle`;
    a hang-up only where it is not ignored (`nohup`).
    """
    hang_up = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
    former = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, *hang_up)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def stop_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """Calls `request_stop` at the first SIGINT, at SIGTERM and SIGHUP;
    a second SIGINT raises KeyboardInterrupt.

    A SIGHUP that is ignored (`nohup`) stays so.

    Does nothing outside the main thread, where Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        asked = True  # before the line that invites the next Ctrl-C, which may come at once
        request_stop()
        # os.write because print may be what the signal interrupted,
        # and a buffered stream cannot be entered twice
        with suppress(OSError):  # the terminal may be gone
            os.write(2, f"{STOPPING}\n".encode())

    with stopped_by(handle):
        yield
