"""How long a run trains, waits for data and is busy with other things."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager


class Clock:
    """Seconds of training, and since the last log line the seconds waited
    for data and the samples trained on.
    """

    def __init__(self, seconds_before: float) -> None:
        self._before, self._start = seconds_before, time.perf_counter()
        self._waited = 0.0
        self._since, self._paused_since, self._samples = self._start, 0.0, 0

    def waiting(self) -> AbstractContextManager[None]:
        return _Timer(self, "_waited")

    def paused(self) -> AbstractContextManager[None]:
        return _Timer(self, "_paused_since")

    def count(self, samples: int) -> None:
        self._samples += samples

    def total(self) -> float:
        return self._before + time.perf_counter() - self._start

    def rates(self) -> dict[str, float]:
        """Images a second and fraction of time spent waiting for data since the last call,
        evaluation left out.
        """
        now = time.perf_counter()
        seconds = max(now - self._since - self._paused_since, 1e-9)
        rates = {
            "images_per_second": self._samples / seconds,
            "data_wait_fraction": min(1.0, self._waited / seconds),
        }
        self._since, self._paused_since, self._waited, self._samples = now, 0.0, 0.0, 0
        return rates


class _Timer:
    """Adds the seconds inside a `with` to an attribute of the clock."""

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        setattr(
            self._clock, self._name, getattr(self._clock, self._name) + time.perf_counter() - self._start
        )
