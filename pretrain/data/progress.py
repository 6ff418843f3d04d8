"""Progress of a long command: a bar on a terminal, a line in a notebook, a plain line on stderr now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cluster.durations import duration
from cluster.notebook import NotebookLine

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_UPDATES = 0.5  # of a line in a notebook


class ProgressLine:
    """Counts up to `total`. Use as a context manager and call `advance`; shows nothing when not `shown`."""

    def __init__(self, title: str, total: int, *, shown: bool = True) -> None:
        self._title, self._total, self._shown = title, total, shown
        self._done, self._before, self._started = 0, 0, time.monotonic()
        self._printed = self._started
        self._bar: Progress | None = None
        self._notebook: NotebookLine | None = None
        self._task = TaskID(0)

    def __enter__(self) -> ProgressLine:
        console = Console(file=sys.stderr, force_jupyter=False)
        self._notebook = NotebookLine.here() if self._shown else None
        if self._shown and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn())
            rate = TextColumn("{task.fields[rate]}")
            self._bar = Progress(*columns, rate, TimeRemainingColumn(), console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start_at(self, num: int) -> None:
        """Counts `num` that were done before, and took no time."""
        self._before, self._done = self._before + num, self._done + num
        if self._bar is not None:
            self._bar.reset(self._task, total=self._total, completed=self._done)

    def advance(self, num: int = 1) -> None:
        """Counts `num` more."""
        self._done += num
        now = time.monotonic()
        rate = (self._done - self._before) / max(now - self._started, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, advance=num, rate=f"{rate:.0f} a second")
        elif self._shown and now - self._printed >= (
            SECONDS_BETWEEN_UPDATES if self._notebook else SECONDS_BETWEEN_LINES
        ):
            self._printed = now
            left = duration((self._total - self._done) / max(rate, 1e-9))
            line = f"{self._title}: {self._done} of {self._total}, {rate:.0f} a second, {left} left"
            if self._notebook is not None:
                self._notebook.show(line)
            else:
                print(line, file=sys.stderr, flush=True)
