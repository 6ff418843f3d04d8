"""What a run prints: one moving line on a terminal or in a notebook, plain lines elsewhere, and warnings."""

from __future__ import annotations

import time
from typing import Any

from cluster.durations import duration
from cluster.progress import Display


class RunConsole:
    """Shows the records that rank 0 reports. Use as a context manager;
    `show` may be called from any one thread.
    """

    def __init__(self, title: str) -> None:
        self._title, self._display = title, Display()
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> RunConsole:
        return self

    def __exit__(self, *_: object) -> None:
        self._display.__exit__()

    def show(self, record: dict[str, Any]) -> None:
        """Shows a `progress`, `note` or `warning` record."""
        if record.get("kind") == "progress":
            self._show_progress(record)
        elif record.get("kind") == "warning":
            self._display.say(f"warning: {record['text']}")
        elif record.get("kind") == "note":
            self._display.say(str(record["text"]))

    def _show_progress(self, record: dict[str, Any]) -> None:
        now, step, num_steps = time.monotonic(), int(record["step"]), int(record["num_steps"])
        if self._first is None:
            self._first = (now, step)
        steps = step - self._first[1]
        remaining = (now - self._first[0]) / steps * (num_steps - step) if steps > 0 else None
        is_last = step == num_steps and not self._display.is_terminal
        stays = "knn_accuracy" in record or is_last
        self._display.update(self._title, step, num_steps, _line(record, remaining), stays=stays)


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
