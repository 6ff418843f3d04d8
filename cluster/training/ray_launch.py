"""Starts a training function on Ray Train workers and brings back its result, its records and its errors."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pyarrow.fs
import ray
import ray.cloudpickle
import ray.exceptions
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import storage
from cluster.errors import StoreUnavailable, UserError, WorkerFailed
from cluster.training.channel import Channel, Listener, Outcome
from cluster.training.rank_context import Record, stop_signals
from cluster.training.ray_private import LeanPrivateTrainer, LeanTrainer, SteppedScaling, is_head
from cluster.training.ray_session import Session
from cluster.training.ray_worker import Work, WorkerError, work

CHANNEL_TIMEOUT_SECONDS = 10.0
ABORT_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Launch:
    """What one run asks of Ray Train."""

    work: Callable[[Any], Work]  # given the channel
    sizes: tuple[int, ...]  # possible numbers of workers, rising; one, unless the run may shrink
    cpus_per_worker: float
    gpus_per_worker: float
    storage_url: str
    max_failures: int  # -1: no limit
    resize_every_seconds: float  # how often a run that may grow looks whether it can
    private: bool  # on a Ray of this run's own

    @property
    def num_workers(self) -> int:
        """The number to have when there is room."""
        return self.sizes[-1]


class _NoteFailures(ray.train.UserCallback):
    """Runs in Ray's controller: tells the channel why workers ended,
    which a killed worker cannot do itself.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in sorted(_deaths(worker_exceptions).items()):
            with suppress(Exception):  # a lost channel must not end the run
                reason = f"worker {rank}: {_reason(error)}"
                ray.get(self._channel.note_death.remote(reason), timeout=CHANNEL_TIMEOUT_SECONDS)


def launch(todo: Launch, session: Session, on_record: Callable[[Record], None] | None) -> Any:
    """Runs to the end and returns what rank 0's function returned.

    Raises UserError or RunStopped as the function raised it, WorkerFailed when the restarts are used up,
    KeyboardInterrupt at the second Ctrl-C.
    """
    # not soft: Ray 2.60 then puts an actor that needs no CPU on another node where the head offers none
    where = NodeAffinitySchedulingStrategy(_head_node(), soft=False)
    name = f"fovea-channel-{uuid.uuid4().hex[:12]}"
    remote: Any = ray.remote(Channel)
    channel = remote.options(name=name, num_cpus=0, scheduling_strategy=where).remote()
    listener = Listener(lambda: _next_records(channel), on_record)
    stop, aborted, done = threading.Event(), threading.Event(), threading.Event()
    results: list[Any] = []
    fit = threading.Thread(
        target=_fit_until_done,
        args=(todo, session, channel, results, aborted, done),
        name="fit",
        daemon=True,
    )
    try:
        # fit() runs in a thread: in the main thread it would put its own handler on Ctrl-C,
        # which ends the run at once
        with stop_signals(stop.set):
            fit.start()
            told = False
            while not done.wait(0.1):
                if stop.is_set() and not told:
                    channel.say.remote("stop")
                    told = True
                # nobody could say any more how the run goes, and each attempt would fail for it
                if listener.lost:
                    aborted.set()
                    raise WorkerFailed(
                        "Ray's head lost the channel between driver and workers; the same command continues"
                    )
        with suppress(ray.exceptions.RayError):
            ray.get(channel.close.remote(), timeout=CHANNEL_TIMEOUT_SECONDS)
        listener.close()
    except KeyboardInterrupt:
        aborted.set()
        channel.say.remote("abort")
        done.wait(ABORT_TIMEOUT_SECONDS)
        raise
    finally:
        ray.kill(channel)
    (result,) = results
    if isinstance(result, BaseException):
        raise result from None
    return result


def _next_records(channel: Any) -> tuple[list[Record], bool]:
    while True:
        try:
            records: tuple[list[Record], bool] = ray.get(channel.next_records.remote())
            return records
        except ray.exceptions.ActorUnavailableError:  # a broken connection; it is made again
            time.sleep(1.0)


def _head_node() -> str:
    """The node whose loss ends everything anyway; the driver may be on one that can be lost."""
    heads = [node["NodeID"] for node in ray.nodes() if node["Alive"] and is_head(node)]
    return heads[0] if heads else ray.get_runtime_context().get_node_id()


def _fit_until_done(
    todo: Launch,
    session: Session,
    channel: Any,
    results: list[Any],
    aborted: threading.Event,
    done: threading.Event,
) -> None:
    """Appends the function's result, or the exception that `launch` is to raise, to `results`."""
    try:
        with _ray_storage(todo.storage_url, session) as (filesystem, path):
            results.append(_fit_with_retries(todo, channel, aborted, filesystem, path))
    except BaseException as error:
        results.append(error)
    finally:
        done.set()


def _fit_with_retries(
    todo: Launch, channel: Any, aborted: threading.Event, filesystem: pyarrow.fs.FileSystem | None, path: str
) -> Any:
    """Calls Ray Train, and again when its controller failed,
    as it does when a worker is killed for memory.
    """
    num_controller_failures = 0
    while not aborted.is_set():
        try:
            result: Any = _trainer(todo, channel, num_controller_failures, filesystem, path).fit()
            _raise_fatal(_outcome(channel))
            return ray.cloudpickle.loads(result.return_value)
        except ray.train.WorkerGroupError as error:
            outcome = _outcome(channel)
            _raise_fatal(outcome)
            if outcome.failures and outcome.failures[0].unavailable is not None:
                raise StoreUnavailable(outcome.failures[0].unavailable) from None
            raise WorkerFailed(_worker_text(outcome, error, todo)) from None
        except (ray.train.ControllerError, ray.exceptions.RayActorError) as error:
            if aborted.is_set():
                break
            outcome = _outcome(channel)
            _raise_fatal(outcome)
            cause = getattr(error, "controller_failure", error)
            if "marker" in str(cause):  # the file by which each of Ray Train's workers knows its storage
                raise UserError(
                    f"the nodes do not see the same {todo.storage_url}; it must be shared by all"
                ) from None
            num_controller_failures += 1
            if 0 <= todo.max_failures < max(num_controller_failures, outcome.num_attempts):
                raise WorkerFailed(f"Ray's controller failed: {_reason(cause)}") from None
            with suppress(ray.exceptions.RayError):
                reason = f"Ray's controller: {_reason(cause)}"
                ray.get(channel.note_death.remote(reason), timeout=CHANNEL_TIMEOUT_SECONDS)
    raise KeyboardInterrupt


def _trainer(
    todo: Launch, channel: Any, num_failed: int, filesystem: pyarrow.fs.FileSystem | None, path: str
) -> LeanTrainer:
    resources = {"CPU": todo.cpus_per_worker}
    if todo.gpus_per_worker:
        resources["GPU"] = todo.gpus_per_worker
    run_config: Any = ray.train.RunConfig  # these stubs are those of Ray Train V1
    scaling_config: Any = ray.train.ScalingConfig
    max_failures = todo.max_failures if todo.max_failures < 0 else max(0, todo.max_failures - num_failed)
    trainer = (LeanPrivateTrainer if todo.private else LeanTrainer)(
        work,
        train_loop_config={"work": todo.work(channel)},
        scaling_config=scaling_config(
            num_workers=(todo.sizes[0], todo.sizes[-1]) if len(todo.sizes) > 1 else todo.num_workers,
            use_gpu=todo.gpus_per_worker > 0,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=todo.resize_every_seconds,
        ),
        run_config=run_config(
            name=uuid.uuid4().hex,  # Ray continues a run whose name it has seen
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            callbacks=[_NoteFailures(channel)],
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    if len(todo.sizes) > 1:
        trainer.scaling = SteppedScaling(
            trainer.scaling_config, todo.sizes, lambda: channel.ask_checkpoint.remote()
        )
    return trainer


@contextmanager
def _ray_storage(storage_url: str, session: Session) -> Iterator[tuple[pyarrow.fs.FileSystem | None, str]]:
    """A folder for Ray Train's own notes, which all nodes must see, also those that join later;
    removed afterwards.
    """
    if session.folder is not None:
        yield None, str(session.folder / "train")
        return
    url = storage.join(storage.absolute(storage_url), f".ray-{uuid.uuid4().hex[:12]}")
    fs, path = storage.filesystem(url)
    try:
        yield pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), path
    finally:
        with suppress(UserError):
            storage.remove(url)


def _outcome(channel: Any) -> Outcome:
    try:
        outcome = ray.get(channel.outcome.remote(), timeout=CHANNEL_TIMEOUT_SECONDS)
    except ray.exceptions.RayError:
        return Outcome()
    assert isinstance(outcome, Outcome)
    return outcome


def _raise_fatal(outcome: Outcome) -> None:
    if outcome.fatal is not None:
        raise ray.cloudpickle.loads(outcome.fatal)


def _worker_text(outcome: Outcome, error: ray.train.WorkerGroupError, todo: Launch) -> str:
    attempts = (
        f" (attempt {outcome.num_attempts} of {todo.max_failures + 1})" if outcome.num_attempts > 1 else ""
    )
    deaths = _deaths(error.worker_failures)
    if outcome.failures and not deaths:
        first = outcome.failures[0]  # the first is the cause, the others mostly hear of it
        return f"worker {first.rank} of {first.world_size} failed{attempts}\n{first.text.rstrip()}"
    rank, cause = min((deaths or error.worker_failures).items())
    return f"worker {rank} failed{attempts}: {_reason(cause)}"


def _deaths(worker_failures: dict[int, Exception]) -> dict[int, Exception]:
    """Those that ended without an exception of their own."""
    return {rank: error for rank, error in worker_failures.items() if not isinstance(error, WorkerError)}


def _reason(error: BaseException) -> str:
    """One line of Ray's many, for a worker that died without a word of its own."""
    cause = getattr(error, "health_check_failure", error)
    text = str(cause)
    if isinstance(cause, ray.exceptions.OutOfMemoryError) or "OutOfMemory" in type(cause).__name__:
        return "killed because its machine ran out of memory"
    if getattr(cause, "preempted", False):
        return "its node was preempted"
    if isinstance(cause, ray.exceptions.ActorUnschedulableError):
        return "could not be placed on the cluster"
    if isinstance(cause, ray.exceptions.RayActorError):
        if "node" in text and ("died" in text or "dead" in text) and "process" not in text:
            return "its node died"
        return "its process died (killed, crashed, or out of memory)"
    return (text.strip() or type(cause).__name__).splitlines()[0]
