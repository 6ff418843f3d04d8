"""What a run prints: one moving line on a terminal or in a notebook, plain lines elsewhere, and warnings."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn

from cluster.durations import duration
from cluster.notebook import NotebookLine

SECONDS_BETWEEN_LINES = 10.0


class RunConsole:
    """Shows the records that rank 0 reports. Use as a context manager; `show` may be called from any one thread."""

    def __init__(self, title: str) -> None:
        self._title = title
        # in a notebook rich needs ipywidgets for what moves, so that line is ours
        self._console = RichConsole(file=sys.stdout, highlight=False, soft_wrap=True, force_jupyter=False)
        self._notebook = NotebookLine.here()
        self._bar: Progress | None = None
        self._task: Any = None
        self._first: tuple[float, int] | None = None
        self._printed = 0.0

    def __enter__(self) -> RunConsole:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, record: dict[str, Any]) -> None:
        """Shows a `progress`, `note` or `warning` record."""
        if record.get("kind") == "progress":
            self._show_progress(record)
        elif record.get("kind") == "warning":
            self._print(f"warning: {record['text']}")
        elif record.get("kind") == "note":
            self._print(str(record["text"]))

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False)

    def _show_progress(self, record: dict[str, Any]) -> None:
        now, step, num_steps = time.monotonic(), int(record["step"]), int(record["num_steps"])
        if self._first is None:
            self._first = (now, step)
        text = _line(record, self._remaining(now, step, num_steps))
        if self._notebook is not None:
            self._notebook.show(f"{self._title}: {text}")
        elif self._console.is_terminal:
            if self._bar is None:
                self._bar = Progress(
                    TextColumn("{task.description}"),
                    BarColumn(20),
                    TextColumn("{task.fields[text]}"),
                    console=self._console,
                )
                self._bar.start()
                self._task = self._bar.add_task(self._title, total=num_steps, text="")
            self._bar.update(self._task, completed=step, text=text)
            if "knn_accuracy" in record:
                self._print(f"{self._title}: {text}")
        elif now - self._printed > SECONDS_BETWEEN_LINES or step == num_steps or "knn_accuracy" in record:
            self._print(f"{self._title}: {text}")
            self._printed = now

    def _remaining(self, now: float, step: int, num_steps: int) -> float | None:
        assert self._first is not None
        steps = step - self._first[1]
        return (now - self._first[0]) / steps * (num_steps - step) if steps > 0 else None


def _line(record: dict[str, Any], remaining_seconds: float | None) -> str:
    parts = [f"step {record['step']}/{record['num_steps']}", f"epoch {record['epoch']:.1f}"]
    if "loss" in record:
        parts.append(f"loss {record['loss']:.4f}")
    for name in ("knn_accuracy", "accuracy"):
        if name in record:
            parts.append(f"{name.replace('_', ' ')} {100 * record[name]:.1f} %")
    if "effective_rank" in record:
        parts.append(f"rank {record['effective_rank']:.0f}")
    parts.append(f"{record['images_per_second']:.0f} images/s")
    parts.append(f"wait {100 * record['data_wait_fraction']:.0f} %")
    if remaining_seconds is not None and record["step"] < record["num_steps"]:
        parts.append(f"{duration(remaining_seconds)} left")
    return "  ".join(parts)
