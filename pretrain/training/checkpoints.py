"""Checkpoints of a run: tensors and plain numbers, written in the background, whole or not at all.

OUT/checkpoints/step_00001200/ holds `state.pt` (module and optimizer state, loaded with `weights_only=True`) and
`checkpoint.json` (position, counters, size and checksum of the state), which is written last: a folder without it, or whose
state has another size or checksum, is a checkpoint that was cut off, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cluster import storage
from cluster.errors import UserError

FORMAT_VERSION = 1
META = "checkpoint.json"
STUCK_SECONDS = 10.0  # how long training waits for the checkpoint before, where it can do without the next


@dataclass
class Progress:
    """Where a run stands; all of it JSON.

    `loss_sum` and `loss_count` are of the steps since the last log line, so that a resumed run writes the same next line;
    `evaluations_since_best` are those without a better score.
    """

    step: int = 0
    samples_seen: int = 0
    seconds: float = 0.0
    restarts: int = 0
    restart_log: list[dict[str, Any]] = field(default_factory=list)
    failed_writes: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    skipped_steps: int = 0
    bad_row_count: int = 0
    bad_rows: dict[str, str] = field(default_factory=dict)
    best_score: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


def folder_name(step: int) -> str:
    """The name of a step's checkpoint; names sort by step."""
    return f"step_{step:010d}"


class CheckpointWriter:
    """Writes checkpoints in a thread of its own and keeps the newest `keep`. Only rank 0 has one.

    A write that fails, however often the storage was asked, is told in `troubles` and ends nothing: the checkpoint before
    is whole, and the next will be tried. Only `wait`, at the end of a run, raises what went wrong in the last one.
    """

    def __init__(self, run_url: str, *, keep: int, troubles: deque[str] | None = None) -> None:
        self._url, self._keep = storage.join(run_url, "checkpoints"), keep
        self._troubles: deque[str] = deque() if troubles is None else troubles
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._step = 0  # of the write under way, or the last one
        self._whole_step: int | None = None

    @property
    def failed(self) -> bool:
        """Whether the last checkpoint could not be written."""
        return self._error is not None

    def write(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        progress: Progress,
        *,
        first: Callable[[], None] = lambda: None,
        needed: bool = True,
    ) -> None:
        """Copies the state to host memory and returns; storage is written while training goes on.

        `first` is called before in the same thread, so that logs in storage are never behind the checkpoint. Unless it is
        `needed`, the checkpoint is left out when the one before is stuck, and training does not wait for that.
        """
        self.join(None if needed else STUCK_SECONDS)
        if self._thread is not None:
            self._troubles.append(
                f"the checkpoint of step {progress.step} is left out: that of step {self._step} is still being written"
            )
            return
        state = {"module": _on_host(module.state_dict()), "optimizer": _on_host(optimizer.state_dict())}
        meta = {"format_version": FORMAT_VERSION, **asdict(progress)}
        self._step = progress.step
        self._thread = threading.Thread(target=self._write, args=(state, meta, first), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits for the write under way. Raises what went wrong in the last one."""
        self.join()
        if self._error is not None:
            raise self._error

    def join(self, timeout_seconds: float | None = None) -> None:
        """Waits for the write under way; what went wrong in it is kept for `wait`."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            if not self._thread.is_alive():
                self._thread = None

    def _write(self, state: dict[str, Any], meta: dict[str, Any], first: Callable[[], None]) -> None:
        step = meta["step"]
        try:
            first()
            buffer = io.BytesIO()
            torch.save(state, buffer)
            data = buffer.getvalue()
            meta |= {"state_bytes": len(data), "state_sha256": hashlib.sha256(data).hexdigest()}
            folder = storage.join(self._url, folder_name(step))
            storage.write_bytes(storage.join(folder, "state.pt"), data)
            storage.write_json(storage.join(folder, META), meta)
            self._error, self._whole_step = None, step
        except BaseException as error:
            self._error = error
            whole = (
                "no whole one yet" if self._whole_step is None else f"the last whole one is of step {self._whole_step}"
            )
            self._troubles.append(f"the checkpoint of step {step} could not be written ({error}); {whole}")
            return
        try:
            self._prune(step)
        except UserError as error:
            self._troubles.append(f"old checkpoints could not be removed ({error})")

    def _prune(self, step: int) -> None:
        """Removes all but the newest whole ones, and what cut-off writes left."""
        whole = 0
        for name in reversed(_step_folders(self._url)):
            folder = storage.join(self._url, name)
            if name > folder_name(step):
                continue  # of an attempt that had come further; it is written again when this one is there
            if whole < self._keep and storage.exists(storage.join(folder, META)):
                whole += 1
            else:
                storage.remove(folder)


def _on_host(value: Any) -> Any:
    """A copy that training cannot change any more; containers are kept, tensors are cloned to host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _on_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_on_host(item) for item in value]
    return value


def _step_folders(url: str) -> list[str]:
    return [name for name in storage.names_in(url) if name.startswith("step_")]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint in storage."""

    progress: Progress
    state: dict[str, Any]


def load_newest(run_url: str, *, at_step: int | None = None) -> Checkpoint | None:
    """The newest complete checkpoint of a run (or the one of a given step); None when there is none.

    Raises UserError for a checkpoint of another format version.
    """
    url = storage.join(run_url, "checkpoints")
    for name in reversed(_step_folders(url)):
        if at_step is not None and name != folder_name(at_step):
            continue
        folder = storage.join(url, name)
        meta_url = storage.join(folder, META)
        if not storage.exists(meta_url):
            continue  # cut off before its last file
        meta = storage.read_json(meta_url)
        version = meta.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise UserError(
                f"{meta_url} has format version {version}, this program reads version {FORMAT_VERSION}; "
                "continue the run with the version it was started with, or choose another out"
            )
        data = storage.read_bytes(storage.join(folder, "state.pt"))
        size, checksum = meta.pop("state_bytes"), meta.pop("state_sha256")
        if len(data) != size or hashlib.sha256(data).hexdigest() != checksum:
            continue  # damaged after it was written: the one before is used
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return Checkpoint(Progress(**meta), state)
    return None


def restore(checkpoint: Checkpoint, module: nn.Module, optimizer: Optimizer) -> None:
    """Puts a checkpoint's state into a module and its optimizer. Raises UserError that lists every mismatch."""
    wanted, found = module.state_dict(), checkpoint.state["module"]
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    reshaped = sorted(key for key in wanted.keys() & found.keys() if wanted[key].shape != found[key].shape)
    if missing or unexpected or reshaped:
        raise UserError(
            f"the checkpoint of step {checkpoint.progress.step} does not fit the model: missing {missing}, "
            f"unexpected {unexpected}, of another shape {reshaped}"
        )
    module.load_state_dict(found)
    optimizer.load_state_dict(checkpoint.state["optimizer"])
