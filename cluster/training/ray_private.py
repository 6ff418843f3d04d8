"""All that is used of Ray outside its public interface; a test keeps it out of every other file.

Ray may change each of these between two releases. Where one is missing, the import of this module raises
UserError with one line that names the versions of Ray that have them all;
`pyproject.toml` asks for the same versions.

The module imports Ray Train, so `cluster.training.ray_session` imports
it only when Ray's environment is set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from cluster.errors import UserError

KNOWN_VERSIONS = ">=2.58,<2.61"
CHECKPOINT_SECONDS = 10.0  # from asking for a checkpoint to the restart that begins from it

try:
    import ray._private.worker as ray_worker
    from ray._private.state import state
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.train.v2._internal.execution.context import get_train_context
    from ray.train.v2._internal.execution.scaling_policy import (
        ElasticScalingPolicy,
        NoopDecision,
        ResizeDecision,
    )
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    _printer = ray_worker.print_to_stdstream
    _max_resources = state.get_max_resources_from_cluster_config
    _cluster_config = state.get_cluster_config
    # a method that overrides nothing would never be called
    _HOOKS = (
        DataParallelTrainer._create_default_callbacks,
        DataParallelTrainer._initialize_and_run_controller,
        ElasticScalingPolicy._count_possible_workers,
        ElasticScalingPolicy.make_decision_for_running_worker_group,
    )
except (ImportError, AttributeError) as error:
    raise UserError(
        f"Ray {ray.__version__} lacks a part that Fovea uses ({error}); install one of the versions known "
        f"to work: pip install 'ray[default,train]{KNOWN_VERSIONS}'"
    ) from error


def start_ray(folder: Path, **options: Any) -> None:
    """`ray.init` of a Ray of this process's own, with its sockets and logs in `folder`,
    which has no public option.
    """
    ray.init(address="local", _temp_dir=str(folder), **options)


@contextmanager
def quiet_raylet() -> Iterator[None]:
    """Keeps Ray's errors about its processes out of the terminal:
    what matters of them is told by `run_workers`.

    `log_to_driver=False` does not cover them.
    """
    ray_worker.print_to_stdstream = lambda *args, **kwargs: None
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = _printer


def ask_head(address: str) -> None:
    """Connects to the head of a cluster and lets go;
    raises whatever Ray does, where `ray.init` would try for minutes.
    """
    GcsClient(address=address)


def max_resources() -> dict[str, Any] | None:
    """Resources of all nodes together, of a cluster that grows by itself; None of others."""
    return _max_resources() or None


def kinds_of_node() -> list[dict[str, float]]:
    """Resources of one node of each kind that a cluster may start by itself;
    none of a cluster that does not grow.
    """
    config = _cluster_config()
    groups = [] if config is None else config.node_group_configs
    return [dict(group.resources) for group in groups if group.max_count]


def is_head(node: dict[str, Any]) -> bool:
    """Whether a node of `ray.nodes()` is the head, whose loss ends everything."""
    return "node:__internal_head__" in node["Resources"]


def controller() -> Any:
    """The handle of Ray Train's controller, within a worker:
    nothing public ends a run without retries from there.
    """
    return get_train_context().controller_actor


def preemption_notices() -> Any:
    """Where Ray Train's watcher of nodes puts its notice (`preemption_info`), within a worker;
    the public call is a barrier.

    None in the oldest of the known versions, which gives no notice:
    the loss of the node is then survived as any other.
    """
    return getattr(get_train_context(), "preemption_context", None)


class LeanTrainer(DataParallelTrainer):
    """Without the helpers that this use has no work for, each a process that imports Ray Data for seconds.

    Not TorchTrainer: with it the driver and the controller import torch,
    seconds that the first step waits for.
    """

    idle: tuple[str, ...] = ("DatasetsCallback",)
    scaling: SteppedScaling | None = None  # in place of Ray's own

    def _create_default_callbacks(self) -> Any:
        return [
            callback
            for callback in super()._create_default_callbacks()
            if type(callback).__name__ not in self.idle
        ]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        if self.scaling is not None:
            arguments["scaling_policy"] = self.scaling
        return super()._initialize_and_run_controller(**arguments)


class LeanPrivateTrainer(LeanTrainer):
    """Also without the keeper of placement groups: they end with the private Ray."""

    idle = ("DatasetsCallback", "PlacementGroupCleanerCallback")


class SteppedScaling(ElasticScalingPolicy):
    """How many workers a run that may shrink and grow is given: only numbers that divide its work evenly.

    Ray Train's elastic policy would take any number between the smallest and the largest. This one starts
    with the largest of `sizes` that there is room for, shrinks after a loss, and grows when nodes join. A
    healthy group is asked for a checkpoint (`ask_checkpoint`) some seconds before
    it is started again with another size.
    """

    def __init__(
        self, scaling_config: Any, sizes: Sequence[int], ask_checkpoint: Callable[[], object]
    ) -> None:
        super().__init__(scaling_config)
        self._sizes = sorted(sizes)
        self._ask_checkpoint = ask_checkpoint
        self._asked = False

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if not isinstance(decision, ResizeDecision):
            return decision
        self._asked = not self._asked
        if not self._asked:
            return decision
        self._ask_checkpoint()
        # the next look, which sees the same, is due soon
        interval = self.scaling_config.elastic_resize_monitor_interval_s
        self._latest_monitor_time = time.monotonic() - interval + min(interval, CHECKPOINT_SECONDS)
        return NoopDecision()

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        return max_size(self._sizes, super()._count_possible_workers(reserved_resources))


def max_size(sizes: Sequence[int], room: int) -> int:
    """The largest of the possible numbers of workers that fits,
    or 0 (below every smallest number, so Ray waits).
    """
    return max((size for size in sizes if size <= room), default=0)
