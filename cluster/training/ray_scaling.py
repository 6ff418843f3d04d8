"""How many workers an elastic run gets: only numbers that divide its work evenly.

Ray Train's elastic policy would take any number between the smallest and the largest. The class it is derived from is not
public; `cluster.training.ray_launch` uses it only for runs that may shrink.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision

CHECKPOINT_SECONDS = 10.0  # from asking for a checkpoint to the restart that begins from it


class SteppedScaling(ElasticScalingPolicy):
    """Starts with the largest of `sizes` that there is room for, shrinks after a loss, and grows when nodes join.

    A healthy group is asked for a checkpoint (`ask_checkpoint`) some seconds before it is started again with another size.
    """

    def __init__(self, scaling_config: Any, sizes: Sequence[int], ask_checkpoint: Callable[[], object]) -> None:
        super().__init__(scaling_config)
        self._sizes = sorted(sizes)
        self._ask_checkpoint = ask_checkpoint
        self._asked = False

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
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
    """The largest of the possible numbers of workers that fits, or 0 (below every smallest number, so Ray waits)."""
    return max((size for size in sizes if size <= room), default=0)
