"""Checkpoints of a run: tensors and plain numbers, written in the background, completely or not at all.

OUT/checkpoints/step_00001200/ holds `state.pt` (module and optimizer state, loaded with `weights_only=True`)
and `checkpoint.json` (position, counters, size and checksum of the state), which is written last: a folder
without it is a checkpoint that was cut off, and one whose state has another size or checksum was damaged
later. The newest whole one is used, and what is wrong with newer ones is told. Where all are damaged nothing
is used: steps are not taken again from 0 unsaid.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
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

    `loss_sum` and `loss_count` are of the steps since the last log line, so that a resumed run writes the
    same next line; `evaluations_since_best` are those without a better score; `data` is what the run learns
    from, see `pretrain.training.data_identity`; `parent` is the checkpoint of another
    run that this one began at, if it did.
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
    data: dict[str, Any] = field(default_factory=dict)
    parent: dict[str, Any] = field(default_factory=dict)


def folder_name(step: int) -> str:
    """The name of a step's checkpoint; names sort by step."""
    return f"step_{step:010d}"


class CheckpointWriter:
    """Writes checkpoints in a thread of its own and keeps the newest `keep`. Only rank 0 has one.

    Where the storage is full, older checkpoints make room, all but the newest whole one. A write that fails
    nevertheless is told in `troubles` and ends nothing: the checkpoint before is whole, and the next will be
    tried. Only `wait`, at the end of a run, raises what went wrong in the last one.

    `damaged` names folders that are not whole, whatever they look like: they are not kept in the place of
    whole ones; `whole_step` is the step of the newest whole one that is there.
    """

    def __init__(
        self,
        run_url: str,
        *,
        keep: int,
        troubles: deque[str] | None = None,
        damaged: Iterable[str] = (),
        whole_step: int | None = None,
    ) -> None:
        self._run_url, self._url, self._keep = run_url, storage.join(run_url, "checkpoints"), keep
        self._troubles: deque[str] = deque() if troubles is None else troubles
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._damaged = set(damaged)
        self._step = 0  # of the write under way, or the last one
        self._whole_step = whole_step

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

        `first` is called before in the same thread, so that logs in storage are never behind the checkpoint.
        Unless it is `needed`, the checkpoint is left out when the one before is stuck,
        and training does not wait for that.
        """
        self.join(None if needed else STUCK_SECONDS)
        if self._thread is not None:
            self._troubles.append(
                f"the checkpoint of step {progress.step} is left out: that of step {self._step} is still "
                "being written"
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
        folder = storage.join(self._url, folder_name(step))

        def write() -> None:
            try:
                storage.write_bytes(storage.join(folder, "state.pt"), data)
                storage.write_json(storage.join(folder, META), meta)
            except UserError as error:
                if storage.is_full(error):
                    storage.remove(folder)
                raise

        try:
            first()
            buffer = io.BytesIO()
            torch.save(state, buffer)
            data = buffer.getvalue()
            meta |= {"state_bytes": len(data), "state_sha256": hashlib.sha256(data).hexdigest()}
            with_room(self._run_url, write)
            self._error, self._whole_step = None, step
            self._damaged.discard(folder_name(step))
        except BaseException as error:
            self._error = error
            whole = (
                "no complete one yet"
                if self._whole_step is None
                else f"the last complete one is of step {self._whole_step}"
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
            if (
                whole < self._keep
                and name not in self._damaged
                and storage.exists(storage.join(folder, META))
            ):
                whole += 1
            else:
                storage.remove(folder)


def with_room(run_url: str, write: Callable[[], None]) -> None:
    """Calls `write`; where the storage is full, removes the run's oldest checkpoint and tries again.

    The newest whole one stays. Raises the UserError of `write` when no older one is left to go.
    """
    while True:
        try:
            return write()
        except UserError as error:
            if not (storage.is_full(error) and _oldest_goes(storage.join(run_url, "checkpoints"))):
                raise


def _oldest_goes(url: str) -> bool:
    """Removes the oldest checkpoint before the newest whole one; False when there is none."""
    folders = [storage.join(url, name) for name in _step_folders(url)]
    whole = [at for at, folder in enumerate(folders) if storage.exists(storage.join(folder, META))]
    if not whole or whole[-1] == 0:
        return False
    storage.remove(folders[0])
    return True


def _on_host(value: Any) -> Any:
    """A copy that training cannot change any more;
    containers are kept, tensors are cloned to host memory.
    """
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
    """A complete checkpoint in storage; `passed_over` says what is wrong with newer ones,
    by the names of their folders.
    """

    progress: Progress
    state: dict[str, Any]
    passed_over: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CutOff:
    """Checkpoints of a run that has no whole one, because it ended while it wrote its first:
    names of folders.
    """

    names: tuple[str, ...] = ()


def load_newest(run_url: str, *, at_step: int | None = None) -> Checkpoint | None:
    """The newest complete checkpoint of a run (or the one of a given step); None when there is none.

    Raises UserError for a checkpoint of another format version, and where there are checkpoints that were
    whole once and none that is.
    """
    found = find_newest(run_url, at_step=at_step)
    return found if isinstance(found, Checkpoint) else None


def find_newest(run_url: str, *, at_step: int | None = None) -> Checkpoint | CutOff:
    """As `load_newest`; where there is none, what was begun."""
    url = storage.join(run_url, "checkpoints")
    wrong: dict[str, str] = {}
    cut_off = []
    for name in reversed(_step_folders(url)):
        if at_step is not None and name != folder_name(at_step):
            continue
        folder = storage.join(url, name)
        try:
            meta = read_meta(folder)
            if meta is None:
                cut_off.append(name)
                wrong[name] = f"{META} is missing"
                continue
            return Checkpoint(meta.progress, meta.read_state(folder), wrong)
        except Damaged as error:
            wrong[name] = str(error)
    if len(wrong) > len(cut_off):
        listed = "; ".join(f"{name}: {reason}" for name, reason in wrong.items())
        raise UserError(
            f"none of the checkpoints in {url} is complete ({listed}); put a complete copy of one back, or "
            f"remove {url} to start at step 0"
        )
    return CutOff(tuple(cut_off))


class Damaged(Exception):
    """A checkpoint that is there and cannot be used; says why."""


@dataclass(frozen=True)
class Meta:
    """The content of checkpoint.json."""

    progress: Progress
    state_bytes: int
    state_sha256: str

    def read_state(self, folder: str) -> dict[str, Any]:
        """The state beside it. Raises Damaged."""
        url = storage.join(folder, "state.pt")
        if not storage.exists(url):
            raise Damaged("state.pt is missing")
        data = storage.read_bytes(url)
        if len(data) != self.state_bytes:
            raise Damaged(f"state.pt has {len(data)} bytes of {self.state_bytes}")
        if hashlib.sha256(data).hexdigest() != self.state_sha256:
            raise Damaged("state.pt is not what was written (its checksum differs)")
        return dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))


def read_meta(folder: str) -> Meta | None:
    """What a checkpoint's folder says about it; None where the file is missing.

    Raises Damaged where it says nothing that could be,
    and UserError where another version of the program wrote it.
    """
    url = storage.join(folder, META)
    if not storage.exists(url):
        return None
    try:
        meta = json.loads(storage.read_bytes(url))
    except ValueError as error:
        raise Damaged(f"{META} is not valid JSON") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("format_version"), int):
        raise Damaged(f"{META} is not the description of a checkpoint")
    version = meta.pop("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{url} has format version {version}, this program reads version {FORMAT_VERSION}; "
            "continue the run with the version it was started with, or choose another out"
        )
    size, checksum = meta.pop("state_bytes", None), meta.pop("state_sha256", None)
    default = Progress()
    kinds = {one.name: type(getattr(default, one.name)) for one in fields(Progress)}
    kinds |= {"seconds": float, "loss_sum": float, "best_score": float, "best_step": int}
    optional = ("best_score", "best_step")
    for name, value in meta.items():
        if name not in kinds:
            raise Damaged(f"{META} holds {name!r}, which checkpoints do not have")
        kind = (int, float) if kinds[name] is float else kinds[name]
        if isinstance(value, bool) or not (isinstance(value, kind) or (value is None and name in optional)):
            raise Damaged(f"{META} says {name}={str(value)[:40]!r}")
    if not {"step", "samples_seen"} <= meta.keys() or min(meta["step"], meta["samples_seen"]) < 0:
        raise Damaged(f"{META} does not say which step it is of")
    if not isinstance(size, int) or not isinstance(checksum, str):
        raise Damaged(f"{META} does not describe state.pt")
    return Meta(Progress(**meta), size, checksum)


def progress_newest_first(run_url: str) -> Iterator[Progress]:
    """What the readable checkpoints say about the run, without reading their states."""
    url = storage.join(run_url, "checkpoints")
    for name in reversed(_step_folders(url)):
        with suppress(Damaged):
            meta = read_meta(storage.join(url, name))
            if meta is not None:
                yield meta.progress


def newest_progress(run_url: str) -> Progress | None:
    """What the newest readable checkpoint says about the run; None when there is none."""
    return next(progress_newest_first(run_url), None)


def restore(checkpoint: Checkpoint, module: nn.Module, optimizer: Optimizer) -> None:
    """Puts a checkpoint's state into a module and its optimizer.
    Raises UserError that lists every mismatch.
    """
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
    # on a GPU weights are channels last, on a CPU they are not, and fused optimizers take weights and
    # moments in the order of memory
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if (
                isinstance(value, torch.Tensor)
                and value.shape == parameter.shape
                and value.stride() != parameter.stride()
            ):
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
