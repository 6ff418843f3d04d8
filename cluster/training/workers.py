"""Runs a training function on workers: in this process, on a private Ray, or on an existing cluster.

`run_workers` is all that the floors above need. Ray is imported only when workers are asked for, so that
`--help` and in-process runs do not wait for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from cluster.errors import UserError, WorkerFailed
from cluster.training.rank_context import RankContext, Record, local_context
from cluster.training.shares import Share, check_gpus, share_here, share_on_cluster

if TYPE_CHECKING:
    from cluster.training.ray_session import Session

__all__ = ["WorkerFailed", "Workers", "check_cluster", "run_workers"]

Settings = TypeVar("Settings")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workers:
    """How many workers a function runs on, what each of them gets, and what happens when one is lost.

    Args:
        num_workers: Processes to start; 0 calls the function in this process, without Ray.
        storage_url: A folder that all nodes can reach; on a cluster Ray's notes live there during the run.
        data_urls: What the workers will read. On a cluster of several nodes each is asked first whether it
            can read this and write to `storage_url`, and whether it has the same packages, its GPUs and room
            on its disk.
        smaller: Smaller numbers of workers that the run may go on with when machines are lost, by falling
            back to its newest checkpoint; it grows again when there is room. Empty: it waits until all its
            workers can be replaced.
        cpus_per_worker: CPUs to ask of Ray, and torch's compute threads (threads that decode images are not
            among them). By default this machine's CPUs are shared evenly; on a cluster that is joined see
            `shares`.
        gpus_per_worker: 1: the device of a rank is CUDA, 0: it is the CPU; by default 1 where there are
            GPUs.
        max_failures: How many restarts to make after failures, -1 for no limit. Preemptions are not counted.
        hang_seconds: How long a collective may wait for a rank that hangs before all are restarted.
        resize_seconds: How often a run that has shrunk looks whether it can grow.
        address: A Ray cluster to join; else RAY_ADDRESS, else a private Ray on this machine.
    """

    num_workers: int
    storage_url: str
    data_urls: Sequence[str] = ()
    smaller: Sequence[int] = ()
    cpus_per_worker: float | None = None
    gpus_per_worker: float | None = None
    max_failures: int = 3
    hang_seconds: float = 600.0
    resize_seconds: float = 60.0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise UserError(
                f"num_workers={self.num_workers} is not possible: 0 runs in this process, 1 and more on Ray"
            )
        if self.cpus_per_worker is not None and not self.cpus_per_worker > 0:
            raise UserError(f"cpus_per_worker={self.cpus_per_worker} is not possible: it must be above 0")
        check_gpus(self.gpus_per_worker)
        if self.max_failures < -1:
            raise UserError(
                f"max_failures={self.max_failures} is not possible: it must be 0 or more, or -1 for no limit"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of workers that the run can have, in order."""
        return tuple(
            sorted({self.num_workers, *(size for size in self.smaller if 0 < size < self.num_workers)})
        )


def run_workers(
    function: Callable[[RankContext, Settings], Result],
    settings: Settings,
    workers: Workers,
    *,
    on_record: Callable[[Record], None] | None = None,
) -> Result:
    """Calls `function(context, settings)` on each worker and returns what rank 0's call returned.

    `function` belongs to a module that workers can import. It may be called again after a failure, and then
    finds the newest complete checkpoint in its run folder by itself. Several workers have a torch process
    group (gloo for CPU tensors, NCCL for CUDA tensors). `settings` are anything picklable; `on_record` is
    called in a thread of this process with each record that rank 0 reports, in order.

    Raises UserError or RunStopped as the function raised it, at once and without a restart; WorkerFailed
    with the worker's traceback when the restarts are used up; KeyboardInterrupt at the second Ctrl-C. At the
    first Ctrl-C or SIGTERM all ranks see `stop_requested()`, and the function's return is the run's.
    """
    if workers.num_workers == 0:  # in this process
        with _num_threads(workers.cpus_per_worker), local_context(on_record) as context:
            return function(context, settings)
    return cast(Result, _run_on_ray(function, settings, workers, on_record))


def _run_on_ray(
    function: Callable[..., Any], settings: Any, workers: Workers, on_record: Callable[[Record], None] | None
) -> Any:
    if workers.storage_url.startswith("memory:"):
        raise UserError(
            f"{workers.storage_url} is in the memory of one process; workers need a folder that all can "
            "reach"
        )

    from cluster.training.ray_session import ELASTIC_DEFAULTS, check_resources

    environment = ELASTIC_DEFAULTS if len(workers.sizes) > 1 else {}
    asked = workers.num_workers, workers.cpus_per_worker, workers.gpus_per_worker
    with session_and_share(workers.address, *asked, environment=environment) as (session, share):
        if share.words and on_record is not None:
            on_record({"kind": "note", "text": share.words})
        check_resources(workers.sizes[0], share.resources)
        _preflight(session, workers, share.resources)

        import ray.cloudpickle

        from cluster.training.ray_launch import Launch, launch
        from cluster.training.ray_worker import Work

        call = ray.cloudpickle.dumps((function, settings))
        todo = Launch(
            work=lambda channel: Work(
                call,
                channel,
                num_threads=max(1, int(share.cpus)),
                use_gpu=share.gpus > 0,
                process_group_timeout_seconds=workers.hang_seconds,
                watch_preemption=not session.embedded,
                is_here=session.embedded,
            ),
            sizes=workers.sizes,
            cpus_per_worker=share.cpus,
            gpus_per_worker=share.gpus,
            storage_url=workers.storage_url,
            max_failures=workers.max_failures,
            resize_every_seconds=workers.resize_seconds,
            private=session.embedded,
        )
        return launch(todo, session, on_record)


def check_cluster(workers: Workers) -> int:
    """Asks the cluster that `run_workers` would join whether it is ready; returns its number of nodes.

    0 where `run_workers` would start a Ray of its own, or none.
    Raises UserError with all that is wrong, node by node.
    """
    if workers.num_workers == 0 or not (workers.address or os.environ.get("RAY_ADDRESS")):
        return 0
    from cluster.training.ray_session import check_resources

    asked = workers.num_workers, workers.cpus_per_worker, workers.gpus_per_worker
    with session_and_share(workers.address, *asked) as (session, share):
        check_resources(workers.num_workers, share.resources)
        return _preflight(session, workers, share.resources)


@contextmanager
def session_and_share(
    address: str | None, num_workers: int, cpus: float | None, gpus: float | None, **of_session: Any
) -> Iterator[tuple[Session, Share]]:
    """The Ray for so many workers, see `ray_session`, and each one's share where none is named (None)."""
    from cluster.training.ray_session import ray_session

    has_gpu = False
    if gpus is None:
        import torch

        has_gpu = torch.cuda.is_available()
    here = share_here(os.cpu_count() or 1, num_workers, cpus, gpus, has_gpu=has_gpu)
    with ray_session(address, num_workers, here.cpus, **of_session) as session:
        if session.embedded:
            yield session, here
            return
        import ray

        from cluster.training.ray_private import kinds_of_node, max_resources

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield session, share_on_cluster(nodes, max_resources(), cpus, gpus, kinds=kinds_of_node())


def _preflight(session: Session, workers: Workers, resources: dict[str, float]) -> int:
    if session.embedded:
        return 0
    import ray

    from cluster.training.preflight import check_nodes

    num_nodes = sum(node["Alive"] for node in ray.nodes())
    is_needed = num_nodes > 1 or "GPU" in resources
    return check_nodes(workers.storage_url, workers.data_urls, resources) if is_needed else num_nodes


@contextmanager
def _num_threads(cpus: float | None) -> Iterator[None]:
    if cpus is None:
        yield
        return
    import torch

    former = torch.get_num_threads()
    torch.set_num_threads(max(1, int(cpus)))
    try:
        yield
    finally:
        torch.set_num_threads(former)
