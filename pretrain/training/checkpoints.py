"""Checkpoints of a run: tensors and plain numbers, written in the background, whole or not at all.

OUT/checkpoints/step_00001200/ holds `state.pt` (module and optimizer state, loaded with `weights_only=True`) and
`checkpoint.json` (position, counters, size and checksum of the state), which is written last: a folder without it, or whose
state has another size or checksum, is a checkpoint that was cut off, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cluster import storage
from cluster.errors import UserError

FORMAT_VERSION = 1


@dataclass
class Progress:
    """Where a run stands; all of it JSON.

    `loss_sum` and `loss_count` are of the steps since the last log line, so that a resumed run writes the same next line.
    """

    step: int = 0
    samples_seen: int = 0
    seconds: float = 0.0
    restarts: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    skipped_steps: int = 0
    bad_row_count: int = 0
    bad_rows: dict[str, str] = field(default_factory=dict)
    best_score: float | None = None
    best_step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def folder_name(step: int) -> str:
    """The name of a step's checkpoint; names sort by step."""
    return f"step_{step:010d}"


class CheckpointWriter:
    """Writes checkpoints in a thread of its own and keeps the newest `keep`. Only rank 0 has one.

    A failed write is not lost: it is raised by the next `write` or by `wait`.
    """

    def __init__(self, run_url: str, *, keep: int) -> None:
        self._url, self._keep = storage.join(run_url, "checkpoints"), keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def write(self, module: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
        """Copies the state to host memory and returns; storage is written while training goes on."""
        self.wait()
        state = {"module": _on_host(module.state_dict()), "optimizer": _on_host(optimizer.state_dict())}
        meta = {"format_version": FORMAT_VERSION, **asdict(progress)}
        self._thread = threading.Thread(target=self._write, args=(state, meta), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits for the write under way. Raises what went wrong in it."""
        self.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def join(self) -> None:
        """Waits for the write under way; what went wrong in it is kept for `wait`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, state: dict[str, Any], meta: dict[str, Any]) -> None:
        try:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            data = buffer.getvalue()
            meta |= {"state_bytes": len(data), "state_sha256": hashlib.sha256(data).hexdigest()}
            folder = storage.join(self._url, folder_name(meta["step"]))
            storage.write_bytes(storage.join(folder, "state.pt"), data)
            storage.write_json(storage.join(folder, "checkpoint.json"), meta)
            for name in _step_folders(self._url)[: -self._keep]:
                storage.remove(storage.join(self._url, name))
        except BaseException as error:  # handed to the training thread
            self._error = error


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
        meta_url = storage.join(folder, "checkpoint.json")
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
