"""What runs inside each Ray Train worker: makes its RankContext, calls the function,
tells the channel how it ended.

torch is imported by the ranks only: the driver and Ray's controller load this module too,
and start sooner without it.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import secrets
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import ray.cloudpickle
import ray.train
import ray.train.collective

from cluster.errors import RunStopped, StoreUnavailable, UserError
from cluster.process import set_up_process
from cluster.training.channel import SEND_TIMEOUT_SECONDS, Beginning, Failure, Sender
from cluster.training.preflight import usable_gpus
from cluster.training.rank_context import RankContext
from cluster.training.ray_private import controller, preemption_notices
from cluster.training.shares import HOW_ON_CPUS

logger = logging.getLogger(__name__)

PREEMPTION_POLL_SECONDS = 1.0
PREEMPTION_UNKNOWN_DEADLINE_SECONDS = 120.0  # what Ray Train assumes when a notice names no time
PREEMPTION_PATIENCE_SECONDS = 60.0  # how much later than announced the node may go


LOOPBACK = "127.0.0.1"
IDLE_NODE = 4  # NodeDeathInfo.AUTOSCALER_DRAIN_IDLE of Ray


@dataclass(frozen=True)
class Work:
    """What each worker is sent: the function with its settings, the channel's handle,
    and the CPU threads of torch.
    """

    call: bytes  # pickled (function, settings), for their module loads torch
    channel: Any
    num_threads: int
    use_gpu: bool
    process_group_timeout_seconds: float
    watch_preemption: bool
    is_here: bool = False  # all ranks are on this machine


class WorkerError(Exception):
    """Stands for a worker's exception on its way through Ray, which must pickle it;
    the channel has the whole text.
    """


def work(config: dict[str, Any]) -> bytes | None:
    """The function that Ray Train calls on each rank.
    Rank 0 returns the training function's result, pickled.
    """
    set_up_process()
    todo: Work = config["work"]
    train_context = ray.train.get_context()
    rank, world_size = train_context.get_world_rank(), train_context.get_world_size()
    began = time.monotonic()
    try:
        device = _set_up_device(todo)  # first: NCCL takes the device that is set
    except UserError as error:
        _report_failure(todo.channel, error, rank, world_size)
        raise WorkerError(_summary(error)) from None
    beginning = _join_group(todo, rank, world_size, device)
    if beginning.over:
        return None
    sender = None
    if rank == 0:
        sender = Sender(lambda records, position: _tell(todo.channel.send.remote(records, position)))
    context = RankContext(
        rank=rank,
        world_size=world_size,
        device=device,
        attempt=beginning.attempt,
        restarts=beginning.restarts,
        position_before=beginning.position,
        silent_seconds=beginning.silent_seconds,
        began=began,
    )
    if sender is not None:
        context._send, context._beat = sender.send, sender.beat
    watcher = _Watcher(todo, context)
    if rank == 0:
        known = beginning.num_asked
        threading.Thread(target=_pass_on_asking, args=(todo.channel, context, known), daemon=True).start()
    try:
        function, settings = ray.cloudpickle.loads(todo.call)
        result = function(context, settings)
        pickled = ray.cloudpickle.dumps(result) if rank == 0 else None
    except BaseException as error:
        if sender is not None:
            sender.close()
        _report_failure(todo.channel, error, rank, world_size)
        raise WorkerError(_summary(error)) from None
    if sender is not None:
        sender.close()
    watcher.wait_out_preemption()
    return pickled


def _join_group(todo: Work, rank: int, world_size: int, device: Any) -> Beginning:
    """Makes the torch process group, and has all ranks know the same about this attempt."""
    from torch import distributed
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    timeout = timedelta(seconds=todo.process_group_timeout_seconds)
    store: Any = None
    told = None
    if rank == 0:
        # one rank asks and tells the others, so that all have the same attempt
        # number even if one died before asking
        beginning = ray.get(todo.channel.begin.remote(world_size, _lost_nodes()))
        host = LOOPBACK if todo.is_here else ray.util.get_node_ip_address()
        # on this address alone, where the store by itself listens on all; port 0: the system picks a free
        # one as it binds, where looking for one first leaves it open to be taken
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=family)
        port = listener.getsockname()[1]
        descriptor = listener.detach()
        store = TCPStore(
            host, port, is_master=True, timeout=timeout, wait_for_workers=False, master_listen_fd=descriptor
        )
        told = (beginning, host, port, secrets.token_hex(16))
    if world_size > 1:
        told = ray.train.collective.broadcast_from_rank_zero(told)
    assert told is not None
    beginning, host, port, secret = told
    if store is None:
        store = TCPStore(host, port, is_master=False, timeout=timeout)
    if todo.is_here and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # the store asks nobody who they are, so the keys of the ranks have a name that only these know
    store = PrefixStore(secret, store)
    # both backends, because loops agree on small things (stop now?) with CPU tensors
    backend = "cpu:gloo,cuda:nccl" if todo.use_gpu else "gloo"
    distributed.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    return beginning


def _lost_nodes() -> dict[str, str]:
    """The nodes that died so far, except idle ones that the autoscaler took: id -> address."""
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if not node["Alive"] and node.get("DeathReason") != IDLE_NODE
    }


def _set_up_device(todo: Work) -> Any:
    """Raises UserError for a GPU that torch cannot use:
    nodes that joined after the preflight were not asked before.
    """
    import torch
    from ray.train.torch import get_device

    torch.set_num_threads(todo.num_threads)
    os.environ["OMP_NUM_THREADS"] = str(todo.num_threads)  # for processes that the function starts
    if todo.use_gpu and not torch.cuda.is_available():
        _, words = usable_gpus()
        node = ray.util.get_node_ip_address()
        raise UserError(
            f"node {node}: torch cannot use the GPU that Ray gave a worker there ({words}); {HOW_ON_CPUS}"
        )
    device = get_device() if todo.use_gpu else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # read when something is first compiled; the default of 32 processes is for each rank of a node
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(todo.num_threads))
    return device


def _report_failure(channel: Any, error: BaseException, rank: int, world_size: int) -> None:
    # without the frame of `work`
    own = error.__traceback__.tb_next if error.__traceback__ is not None else None
    text = "".join(traceback.format_exception(type(error), error, own))
    # a store that did not answer for minutes may answer the next attempt
    ends_the_run = isinstance(error, UserError | RunStopped) and not isinstance(error, StoreUnavailable)
    fatal = _pickled(error) if ends_the_run else None
    try:
        unavailable = str(error) if isinstance(error, StoreUnavailable) else None
        _tell(channel.fail.remote(Failure(rank, world_size, _summary(error), text, unavailable), fatal))
        if fatal is not None:
            abort_controller()
    except Exception as lost:
        logger.debug("the channel did not take a failure: %r", lost)


def _pass_on_asking(channel: Any, context: RankContext, known: int) -> None:
    try:
        while True:
            known = ray.get(channel.wait_for_asking.remote(known))
            context.request_checkpoint()
    except Exception as error:
        logger.debug("checkpoints can no longer be requested: %r", error)


def _pickled(error: BaseException) -> bytes:
    try:
        data = ray.cloudpickle.dumps(error)
        if str(pickle.loads(data)) == str(error):  # noqa: S301 - our own bytes
            return data
    except Exception as unpicklable:
        logger.debug("%r goes as its base class: %r", error, unpicklable)
    kind = UserError if isinstance(error, UserError) else RunStopped
    return ray.cloudpickle.dumps(kind(str(error)))


def _summary(error: BaseException) -> str:
    first_line = (str(error).strip() or "no message").splitlines()[0]
    text = f"{type(error).__name__}: {first_line}"
    if isinstance(error, RuntimeError):  # torch has no classes for these
        if re.search(r"timed?.?out|timeout", text, re.IGNORECASE):
            return f"gave up waiting for another worker ({text})"
        if re.search(r"connection (reset|closed|refused)|broken pipe|remote process", text, re.IGNORECASE):
            return "lost its connection to another worker, whose process or node is gone"
    return text


def _tell(reference: Any) -> None:
    ray.get(reference, timeout=SEND_TIMEOUT_SECONDS)


def abort_controller() -> None:
    """Ends the whole run without retries; without it, the run ends after one needless restart."""
    controller().abort.remote()


class _Watcher:
    """A thread that turns a word from the channel or a notice of preemption
    into the stop flag of the context.
    """

    def __init__(self, todo: Work, context: RankContext) -> None:
        self._todo = todo
        self._context = context
        self._deadline: float | None = None  # of the preemption, in time.time() seconds
        self._asked = threading.Event()  # a person asked, so that the run ends here
        threading.Thread(target=self._run, name="stop-watcher", daemon=True).start()

    def wait_out_preemption(self) -> None:
        """After a stop because of a preemption, waits for the end of this process.

        Ray takes a function that returns for a finished run, and only a run that is still there when the
        node goes is restarted from its budget for preemptions.
        """
        if self._deadline is None or self._asked.is_set():
            return
        logger.warning("waiting for the preempted node to go; the run continues on its replacement")
        patience = max(0.0, self._deadline - time.time()) + PREEMPTION_PATIENCE_SECONDS
        if not self._asked.wait(patience):
            raise WorkerError("preempted, but the node is still there")

    def _run(self) -> None:
        try:
            self._wait("stop")
            if self._context.rank == 0:
                self._wait("abort")
                abort_controller()
        except Exception as error:  # the driver or the channel is gone: no more requests will come
            logger.debug("the stop watcher ended: %r", error)

    def _wait(self, word: str) -> None:
        said = self._todo.channel.wait_for.remote(word)
        while True:
            timeout = PREEMPTION_POLL_SECONDS if self._todo.watch_preemption and word == "stop" else None
            ready, _ = ray.wait([said], timeout=timeout)
            if ready:
                ray.get(said)
                self._asked.set()
                self._context.request_stop()
                return
            self._look_for_preemption()

    def _look_for_preemption(self) -> None:
        notice = getattr(preemption_notices(), "preemption_info", None)
        if notice is not None and self._deadline is None:
            known = notice.deadline_ms / 1000 if notice.deadline_ms else None
            self._deadline = known or time.time() + PREEMPTION_UNKNOWN_DEADLINE_SECONDS
            self._context.request_stop()
