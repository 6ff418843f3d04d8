"""A run folder as it is read for the page: settings, the history of its numbers,
how it is going or ended.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from cluster import storage
from cluster.errors import UserError
from cluster.renamed import with_new_names
from pretrain.training import run_folder
from pretrain.training.restarts import RESTARTS

MAX_ROWS, MAX_BAD_ROWS = 20_000, 200
# without a word for this long, and for this many times as long as it usually takes
# from line to line, a run is given up
MIN_SILENCE_SECONDS, SILENCE_LINES = 300.0, 20


@dataclass(frozen=True)
class History:
    """The lines of metrics.jsonl, thinned when they are very many."""

    rows: Sequence[Mapping[str, Any]]

    def column(self, name: str) -> tuple[list[float], list[float | None]]:
        """Steps and values of the lines that have this number."""
        found = [(row["step"], row[name]) for row in self.rows if _is_number_or_gap(row.get(name, ""))]
        return [step for step, _ in found], [value for _, value in found]

    def values(self, name: str) -> list[float]:
        """The finite values of a number, first to last."""
        return [value for value in self.column(name)[1] if value is not None]

    def last(self, name: str) -> float | None:
        """The newest value of a number, None when it was never logged or is not finite."""
        values = self.values(name)
        return values[-1] if values else None

    def first(self, name: str) -> float | None:
        """The oldest value of a number."""
        values = self.values(name)
        return values[0] if values else None

    @property
    def names(self) -> list[str]:
        """Every number that some line has."""
        return list(
            dict.fromkeys(name for row in self.rows for name, value in row.items() if _is_number(value))
        )

    @property
    def step(self) -> int:
        """The last step that is known of."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def findings(self) -> dict[str, str]:
        """What the last line says is wrong: kind -> text."""
        found = self.rows[-1].get("findings") if self.rows else None
        return {str(kind): str(text) for kind, text in found.items()} if isinstance(found, dict) else {}


@dataclass(frozen=True)
class RunRecord:
    """All that a run folder says.

    Attributes:
        url: of the folder.
        settings: as in settings.yaml.
        history: of its numbers.
        result: of result.json; empty while there is none.
        status: `finished`, `running`, `killed` (it left no result and its process is gone, or has been
            silent for long), `interrupted`, `stopped` (by a rule), `failed`, or `unfinished` where it is
            unknown.
        silent_seconds: since something was last written, None when that is not known.
        checkpoint_step: of the newest complete checkpoint.
        bad_rows: the first of bad_rows.jsonl.
        restarts: of restarts.jsonl.
    """

    url: str
    settings: Mapping[str, Any]
    history: History
    result: Mapping[str, Any] = field(default_factory=dict)
    status: str = "unfinished"
    silent_seconds: float | None = None
    checkpoint_step: int | None = None
    bad_rows: Sequence[Mapping[str, Any]] = ()
    restarts: Sequence[Mapping[str, Any]] = ()

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.url.rstrip("/").rpartition("/")[2] or self.url

    @property
    def num_steps(self) -> int | None:
        """Steps that the run has or was to have."""
        training = self.settings.get("training") or {}
        if training.get("steps"):
            return int(training["steps"])
        if "steps" in self.result:
            return int(self.result["steps"])
        epoch = self.history.last("epoch")
        return (
            round(float(training["epochs"]) * self.history.step / epoch)
            if epoch and "epochs" in training
            else None
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers it ended with, or the newest it has."""
        newest = {
            name: value for name in self.history.names if (value := self.history.last(name)) is not None
        }
        return newest | {
            key: value for key, value in (self.result.get("metrics") or {}).items() if _is_number(value)
        }

    def setting(self, *keys: str) -> Any:
        """A setting by its path, None when it is not there."""
        value: Any = self.settings
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def read_run(url: str, *, now: float | None = None) -> RunRecord:
    """Reads a run folder, whatever state it is in. Raises UserError when it is none."""
    url = storage.absolute(url)
    settings_url = storage.join(url, run_folder.SETTINGS)
    if not storage.exists(settings_url):
        there = ", ".join(storage.names_in(url)[:6]) or "nothing"
        raise UserError(f"{url} is not a run folder: it holds no {run_folder.SETTINGS} (there: {there})")
    settings = yaml.safe_load(storage.read_bytes(settings_url))
    history = History(_lines(storage.join(url, run_folder.METRICS), MAX_ROWS))
    result = run_folder.read_result(url) or {}
    silent = _silent_seconds(url, now or time.time())
    return RunRecord(
        url=url,
        settings=with_new_names(settings) if isinstance(settings, dict) else {},
        history=History([row for row in history.rows if isinstance(row.get("step"), int)]),
        result=result,
        status=_status(url, result, history, silent),
        silent_seconds=silent,
        checkpoint_step=_checkpoint_step(url),
        bad_rows=_lines(storage.join(url, run_folder.BAD_ROWS), MAX_BAD_ROWS, thin=False),
        restarts=_lines(storage.join(url, RESTARTS), MAX_BAD_ROWS, thin=False),
    )


def _status(url: str, result: Mapping[str, Any], history: History, silent: float | None) -> str:
    if result.get("status") in ("finished", "interrupted", "stopped", "failed"):
        return str(result["status"])
    mark_url = storage.join(url, run_folder.RUNNING)
    if not storage.exists(mark_url):
        return "unfinished"
    mark = storage.read_json(mark_url)
    if mark.get("host") == socket.gethostname() and not _is_alive(int(mark["pid"])):
        return "killed"
    seconds, lines = history.last("seconds"), len(history.rows)
    usual = seconds / lines if seconds and lines else 0.0
    if silent is not None and silent > max(MIN_SILENCE_SECONDS, SILENCE_LINES * usual):
        return "killed"
    return "running"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _silent_seconds(url: str, now: float) -> float | None:
    # stores other than the local disk see the log with each checkpoint only,
    # so their times tell nothing of a run
    if not storage.is_local(url):
        return None
    path = storage.local_path(storage.join(url, run_folder.METRICS))
    return max(0.0, now - path.stat().st_mtime) if path.exists() else None


def _checkpoint_step(url: str) -> int | None:
    checkpoints = storage.join(url, "checkpoints")
    for name in reversed(storage.names_in(checkpoints)):
        if name.startswith("step_") and storage.exists(storage.join(checkpoints, name, "checkpoint.json")):
            return int(name.removeprefix("step_"))
    return None


def _lines(url: str, max_lines: int, *, thin: bool = True) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a line that was cut off is passed over.

    Of more than `max_lines` every second is dropped, again and again, but for those with a number that few
    lines have; without `thin` the first are kept.
    """
    if not storage.exists(url):
        return []
    rows: list[dict[str, Any]] = []
    with storage.open_input(url) as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if not isinstance(row, dict):
                continue
            if len(rows) >= max_lines:
                if not thin:
                    break
                usual = len(rows[0])
                rows = [row for index, row in enumerate(rows) if index % 2 == 0 or len(row) > usual]
            rows.append(row)
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_number_or_gap(value: Any) -> bool:
    return value is None or _is_number(value)
