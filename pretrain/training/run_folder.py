"""What a run leaves behind in OUT: settings, metrics, TensorBoard, the result. Only rank 0 writes."""

from __future__ import annotations

import json
import math
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster import lease, storage
from cluster.errors import RunStopped, UserError
from cluster.secrets import masked
from cluster.settings import to_dict
from cluster.training.rank_context import RankContext
from pretrain.data.reading.shards import RowLocation
from pretrain.training.restarts import RestartLog
from pretrain.training.tracking import Trackers

SETTINGS, METRICS, RESULT, BAD_ROWS = "settings.yaml", "metrics.jsonl", "result.json", "bad_rows.jsonl"
REPORT = "report.html"
RUNNING = "running.json"  # there while a run goes on; what a killed run leaves behind
TRAINED_ON = "# trained on"
CUT_OFF = 2**62  # stands for the step of a line that was cut off


class RunFolder:
    """Writer of a run folder at any fsspec URL.

    Lines of metrics are appended as they come when OUT is local; in an object store, which cannot append,
    files are kept in a temporary folder and uploaded by `sync`,
    which the loop calls with every checkpoint and at the end.

    A full or failing disk does not end a run because of its logs: lines wait in memory until they can be
    written, and what went wrong is told in `troubles`, which the loop empties.

    Args:
        url: OUT.
        tracking: names of further trackers beside TensorBoard, see `pretrain.training.tracking`.
        config: the settings that they show, without secrets.
    """

    def __init__(
        self, url: str, *, tracking: Sequence[str] = (), config: dict[str, Any] | None = None
    ) -> None:
        self.url = url
        self._tracking, self._config = tracking, config or {}
        self._trackers: Trackers | None = None
        self.troubles: deque[str] = deque()
        self.restarts = RestartLog(url)
        self._staging: tempfile.TemporaryDirectory[str] | None = None
        self._tensorboard: Any = None
        self._metrics: Any = None
        self._waiting = b""  # lines that are not in the file yet
        self._size = 0  # of the file, in whole lines

    @classmethod
    def of(cls, settings: Any, context: RankContext) -> RunFolder | None:
        """That of a run with these settings, for the rank that writes it; None for the others."""
        if context.rank:
            return None
        return cls(settings.out, tracking=settings.tracking, config=to_dict(settings))

    def start_at(self, step: int, *, first_step: int = 0) -> int | None:
        """Opens the logs at a step: lines after it, written by an attempt that was cut off, are dropped,
        so none is double.

        Returns the last step that was logged before, None when this is the first start,
        which is at `first_step`.
        """
        if storage.is_local(self.url):
            self._local = storage.local_path(self.url)
            self._local.mkdir(parents=True, exist_ok=True)
        else:
            self._staging = tempfile.TemporaryDirectory(prefix="fovea-run-")
            self._local = Path(self._staging.name)
        path = self._local / METRICS
        old = storage.join(self.url, METRICS)
        was_there = storage.exists(old)
        content = storage.read_bytes(old) if was_there else b""
        lines = content.splitlines()
        steps = [_step_of(line) for line in lines]
        if CUT_OFF in steps[:-1]:  # the last one is cut off where a run was killed
            self.troubles.append(
                f"{steps[:-1].count(CUT_OFF)} lines of {METRICS} cannot be read and are left out"
            )
        kept = [line for line, at in zip(lines, steps, strict=True) if at <= step]
        self._begin(path, content, b"".join(line + b"\n" for line in kept))

        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed on rank 0

        self._tensorboard = SummaryWriter(
            str(self._local / "tensorboard"), purge_step=step + 1 if step else None
        )
        last_step = (
            max((at for at in steps if at != CUT_OFF), default=step)
            if was_there or step > first_step
            else None
        )
        self._trackers = Trackers(
            self._tracking,
            url=self.url,
            local=self._local,
            config=self._config,
            lines=[json.loads(line.decode()) for line in kept],
        )
        self._take_troubles()
        return last_step

    def _begin(self, path: Path, found: bytes, kept: bytes) -> None:
        """Opens metrics.jsonl behind `kept`, so that a process killed meanwhile
        leaves what was found or what is kept.
        """
        # the usual case, which needs no room on a full disk
        if self._staging is None and found.startswith(kept):
            self._metrics = open(path, "ab", buffering=0)  # noqa: SIM115 - open while the run lasts
            self._metrics.truncate(len(kept))
        else:
            storage.write_bytes(str(path), kept)
            self._metrics = open(path, "ab", buffering=0)  # noqa: SIM115
        self._size = len(kept)

    def log(self, record: dict[str, Any]) -> None:
        """Appends one line to metrics.jsonl and the same numbers to the trackers;
        numbers that JSON lacks become null.
        """
        line = finite(record)
        self._write(json.dumps(line) + "\n")
        scalars = [
            (key, value) for key, value in line.items() if isinstance(value, int | float) and key != "step"
        ]
        self._to_tensorboard(lambda board: [board.add_scalar(*scalar, record["step"]) for scalar in scalars])
        if self._trackers is not None:
            self._trackers.log(line)
            self._take_troubles()

    def _write(self, text: str) -> None:
        """Appends lines to metrics.jsonl, whole or not at all: a part of a line is cut off again."""
        self._waiting += text.encode()
        try:
            if self._metrics.tell() != self._size:  # a part of a line is there
                self._metrics.truncate(self._size)
            while self._waiting:
                written = self._metrics.write(self._waiting)
                self._size, self._waiting = self._size + written, self._waiting[written:]
        except OSError as error:
            self.troubles.append(f"{METRICS} could not be written ({error}); its lines are kept in memory")

    def _to_tensorboard(self, action: Callable[[Any], object]) -> None:
        if self._tensorboard is not None:
            try:
                action(self._tensorboard)
            except Exception as error:  # its writer is a thread of its own, which hands on whatever ended it
                self._tensorboard = None
                self.troubles.append(
                    f"nothing more is written for TensorBoard until the next start ({error})"
                )

    def _take_troubles(self) -> None:
        if self._trackers is not None:
            self.troubles.extend(self._trackers.troubles)
            self._trackers.troubles.clear()

    def sync(self) -> None:
        """Makes everything logged so far visible at the URL.
        May be called from a thread while lines are logged.

        Raises UserError when the storage does not take it.
        """
        self._to_tensorboard(lambda board: board.flush())
        self.restarts.write_if_new()
        if self._staging is not None:
            for path in self._local.rglob("*"):
                if path.is_file():
                    storage.upload(path, storage.join(self.url, *path.relative_to(self._local).parts))

    def write_bad_rows(self, rows: dict[str, str]) -> None:
        """Writes bad_rows.jsonl as a whole: where each row that could not be used lies, and why."""
        listed = sorted((RowLocation.parse(location), reason) for location, reason in rows.items())
        lines = [json.dumps({**asdict(location), "reason": reason}) + "\n" for location, reason in listed]
        storage.write_bytes(storage.join(self.url, BAD_ROWS), "".join(lines).encode())

    def finish(self, result: dict[str, Any], bad_rows: dict[str, str]) -> None:
        """Writes what a finished run leaves, result.json last."""
        self.write_bad_rows(bad_rows)
        self.close()
        write_result(self.url, result)

    def close(self, *, finished: bool = True) -> None:
        """Uploads what is left and closes the files; trackers are told whether the run is finished."""
        if self._metrics is not None:
            if self._trackers is not None:
                self._trackers.close(finished)
            self._write("")
            self._to_tensorboard(lambda board: board.close())
            self._tensorboard = None
            self.sync()
            self._metrics.close()
        if self._staging is not None:
            self._staging.cleanup()


def finite(value: Any) -> Any:
    """Plain values with None in the place of numbers that JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step_of(line: bytes) -> int:
    try:
        step = json.loads(line.decode())["step"]
    except (ValueError, KeyError, TypeError):
        return CUT_OFF
    return step if isinstance(step, int) else CUT_OFF


@contextmanager
def running(run_url: str) -> Iterator[None]:
    """Holds OUT, and says in result.json how the run ended where it does not say so itself.

    A result that stands there from an attempt that did not finish is removed first, and a report,
    which tells of it.

    Raises InUse when another command holds OUT.
    """
    with lease.held(storage.join(run_url, RUNNING), run_url):
        for name in (RESULT, REPORT):
            storage.remove(storage.join(run_url, name))
        try:
            yield
        except BaseException as error:
            status = {RunStopped: "stopped", KeyboardInterrupt: "interrupted"}.get(type(error), "failed")
            reason = masked(str(error).strip() or type(error).__name__)
            with suppress(Exception):  # where the storage is what failed, its error is the one to see
                write_result(run_url, {"status": status, "reason": reason})
            raise


def read_result(run_url: str) -> dict[str, Any] | None:
    """The result.json of a run that ended, however it did, or None; a damaged one says nothing of an end."""
    url = storage.join(run_url, RESULT)
    if not storage.exists(url):
        return None
    try:
        result = json.loads(storage.read_bytes(url))
    except ValueError:
        return None
    return result if isinstance(result, dict) else None


def write_result(run_url: str, result: dict[str, Any]) -> None:
    """Writes result.json, the last file of a run."""
    storage.write_json(storage.join(run_url, RESULT), finite(result))


def read_settings(run_url: str) -> str | None:
    """The text of the settings.yaml that is there; None where there is none or it holds no settings."""
    url = storage.join(run_url, SETTINGS)
    if not storage.exists(url):
        return None
    text = storage.read_bytes(url).decode(errors="replace")
    return text if text.strip() else None


def has_steps(run_url: str) -> bool:
    """Whether a run took a step there that it told of: a line of metrics, or a checkpoint."""
    url = storage.join(run_url, METRICS)
    if storage.exists(url) and any(
        _step_of(line) != CUT_OFF for line in storage.read_bytes(url).splitlines()[:10]
    ):
        return True
    return bool(storage.names_in(storage.join(run_url, "checkpoints")))


def claim(run_url: str, settings_yaml: str) -> None:
    """Takes OUT for a run with these settings; `check_claim` comes before."""
    storage.write_bytes(storage.join(run_url, SETTINGS), settings_yaml.encode())


def tell_device(run_url: str, name: str) -> None:
    """Says above the settings what the run was trained on last."""
    text = read_settings(run_url)
    if text is not None:
        kept = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(TRAINED_ON))
        storage.write_bytes(storage.join(run_url, SETTINGS), f"{TRAINED_ON} {name}\n{kept}".encode())


@contextmanager
def as_it_was_if_nothing_happens(run_url: str) -> Iterator[None]:
    """Removes what came into OUT when what is done here fails before its first step,
    so that other settings find it free.
    """
    before = set(storage.names_in(run_url))
    settings = read_settings(run_url)
    with storage.no_new_folders(run_url):
        try:
            yield
        except lease.InUse:
            raise  # what is there is the other command's
        except BaseException:
            with suppress(Exception):  # the error is the one to see
                if not has_steps(run_url):
                    for name in set(storage.names_in(run_url)) - before:
                        storage.remove(storage.join(run_url, name))
                    if settings is not None:
                        claim(run_url, settings)
            raise


def check_is_no_file(run_url: str) -> None:
    """Raises UserError when a file lies in the place of OUT."""
    if storage.is_local(run_url) and storage.local_path(run_url).is_file():
        raise UserError(
            f"{run_url} is a file; out must be a folder, or a location where there is nothing yet"
        )


def check_claim(run_url: str, refused: Sequence[str]) -> None:
    """Sees to it that OUT can be taken.

    Args:
        run_url: OUT.
        refused: in words the settings that differ from those of the run there and may not.

    Raises UserError when OUT cannot be written, holds a run with other settings, or other files.
    """
    if refused:
        raise UserError(
            f"{run_url} holds a run with other settings ({'; '.join(refused)}); "
            "choose another out, or repeat the command with its settings to continue it"
        )
    if not storage.exists(storage.join(run_url, SETTINGS)):
        others = [name for name in storage.names_in(run_url) if not name.startswith(".")]
        if others:
            raise UserError(
                f"{run_url} is not empty and is not a run folder (there: {', '.join(others[:5])}); choose "
                "another out"
            )
    storage.check_writable(run_url)
