"""How far a long command is: moving lines on a terminal, one line that changes in a notebook,
now and then a line elsewhere.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from cluster.durations import duration

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_UPDATES = 0.5  # of a line in a notebook


class Display:
    """Shows how far things are. A context manager.

    Args:
        file: where to; by default the standard output.
        transient: moving lines vanish at the end.
    """

    def __init__(self, file: TextIO | None = None, *, transient: bool = False) -> None:
        # in a notebook rich needs ipywidgets for what moves, so that line is ours
        self._console = Console(
            file=file or sys.stdout, highlight=False, soft_wrap=True, force_jupyter=False
        )
        self._notebook = _in_notebook()
        self._shown_there: Any = None
        self._transient = transient
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._printed = float("-inf")

    @property
    def is_terminal(self) -> bool:
        """Whether lines move."""
        return self._console.is_terminal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        self._console.print(line, markup=False)

    def update(self, title: str, done: int, total: int, text: str, *, stays: bool = False) -> None:
        """How far this thing is, and in words. Where nothing moves, a line every ten seconds; `stays`:
        in any case.
        """
        now, line = time.monotonic(), f"{title}: {text}"
        if self._notebook:
            if stays or now - self._printed >= SECONDS_BETWEEN_UPDATES:
                self._printed = now
                self._show_there(line)
            return
        if self.is_terminal:
            if self._bar is None:
                columns = TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[text]}")
                self._bar = Progress(*columns, console=self._console, transient=self._transient)
                self._bar.start()
            if title not in self._tasks:
                self._tasks[title] = self._bar.add_task(title, total=total, text="")
            self._bar.update(self._tasks[title], completed=done, total=total, text=text)
        if stays or (not self.is_terminal and now - self._printed >= SECONDS_BETWEEN_LINES):
            self._printed = now
            self.say(line)

    def wait(self) -> None:
        """The next plain line comes only when it is due after now: what is done sooner is not worth one."""
        self._printed = time.monotonic()

    def _show_there(self, text: str) -> None:
        from IPython.display import display

        data = {"text/plain": text}
        if self._shown_there is None:
            self._shown_there = display(data, raw=True, display_id=True)
        else:
            self._shown_there.update(data, raw=True)


class ProgressLine:
    """Counts up to `total` on the standard error output.
    Use as a context manager; shows nothing when not `shown`.
    """

    def __init__(self, title: str, total: int = 0, *, shown: bool = True) -> None:
        self._title, self._total = title, total
        self._done, self._before, self._started = 0, 0, time.monotonic()
        self._display = Display(sys.stderr, transient=True) if shown else None

    def __enter__(self) -> Self:
        if self._display is not None:
            self._display.wait()
        return self

    def __exit__(self, *_: object) -> None:
        if self._display is not None:
            self._display.__exit__()

    def start_at(self, num: int) -> None:
        """Counts `num` that were done before, and took no time."""
        self._before, self._done = self._before + num, self._done + num

    def advance(self, num: int = 1) -> None:
        """Counts `num` more."""
        self._done += num
        if self._display is not None:
            rate = (self._done - self._before) / max(time.monotonic() - self._started, 1e-9)
            left = f", {duration((self._total - self._done) / rate)} left" if rate > 0 else ""
            text = f"{self._done:,} of {self._total:,}, {rate:.3g} a second{left}"
            self._display.update(self._title, self._done, self._total, text)

    def reach(self, done: int, total: int) -> None:
        """For those who count by themselves; what is done at the first call was done before."""
        if not self._total:
            self._total = total
            self.start_at(done)
        self.advance(done - self._done)


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook; IPython on a terminal is none."""
    ipython = sys.modules.get("IPython")  # a kernel has it loaded
    return hasattr(None if ipython is None else ipython.get_ipython(), "kernel")
