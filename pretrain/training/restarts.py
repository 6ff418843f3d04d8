"""Every restart of a run, explained: OUT/restarts.jsonl, and the same list in result.json.

A restart is an attempt that found the work of an earlier one, whether Ray replaced a dead worker or a user
gave the command again. The list is a file of its own, because a checkpoint is older than the restart that it
is read for: of two deaths between two checkpoints, both are to be counted.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from cluster import storage
from cluster.training.rank_context import RankContext

RESTARTS = "restarts.jsonl"
AGAIN = "the command was given again"


@dataclass
class Restart:
    """One of them.

    Attributes:
        why: in words, as far as known.
        when: the beginning of the new attempt, UTC.
        from_step: steps that the checkpoint held.
        lost_steps: steps that had been taken after it, and were taken again; as far as they were heard of.
        seconds_to_recover: from the last step heard of before (from the beginning of the attempt, when the
            command was given again) to the first step after; null where the attempt did not come that far.
        workers: how many the run went on with.
        passed_over: newer checkpoints that could not be used: their folders -> why.
    """

    why: str
    when: str
    from_step: int
    lost_steps: int
    seconds_to_recover: float | None
    workers: int
    passed_over: dict[str, str] = field(default_factory=dict)

    def as_entry(self) -> dict[str, Any]:
        """As plain values; what was not passed over is left out."""
        return {name: value for name, value in asdict(self).items() if name != "passed_over" or value}


class RestartLog:
    """The restarts of a run, this attempt's last; rank 0 only."""

    def __init__(self, run_url: str) -> None:
        self._url = storage.join(run_url, RESTARTS)
        self._began = 0.0
        self._running: Restart | None = None
        self._new = False
        self.entries: list[dict[str, Any]] = []

    def begin(
        self,
        context: RankContext,
        *,
        from_step: int,
        last_step: int | None,
        passed_over: dict[str, str] | None = None,
    ) -> Restart | None:
        """Adds and writes down this attempt's restart if it is one.

        `last_step` is the last step that the run folder tells of, None when nothing was there; `passed_over`
        holds newer checkpoints that could not be used, and why.
        """
        content = storage.read_bytes(self._url) if storage.exists(self._url) else b""
        self.entries = [entry for line in content.splitlines() if (entry := _entry(line)) is not None]
        if context.attempt == 0 and last_step is None:
            return None
        reached = max(from_step, last_step or 0, context.position_before or 0)
        self._began = context.began - context.silent_seconds
        self._running = Restart(
            why=context.restarts[-1] if context.attempt else AGAIN,
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            from_step=from_step,
            lost_steps=reached - from_step,
            seconds_to_recover=None,
            workers=context.world_size,
            passed_over=passed_over or {},
        )
        self.entries.append(self._running.as_entry())
        self._new = True
        self.write_if_new()
        return self._running

    def step_taken(self) -> float | None:
        """Says that a step is taken; at the first after a restart,
        the seconds that it took to come there.
        """
        if self._running is None:
            return None
        self._running, seconds = None, round(time.monotonic() - self._began, 3)
        self.entries[-1]["seconds_to_recover"] = seconds
        self._new = True
        return seconds

    def write_if_new(self) -> None:
        """Writes the list down when there is something new in it.
        Raises UserError when the storage does not take it.
        """
        if self._new:
            lines = "".join(json.dumps(entry) + "\n" for entry in self.entries)
            storage.write_bytes(self._url, lines.encode())
            self._new = False


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line.decode())
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
