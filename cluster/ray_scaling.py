"""How many workers a run that may shrink and grow is given: only numbers that divide its work evenly.

Ray Train's elastic policy would take any number between the smallest and the largest. The class it is derived from is not
public; `cluster.ray_launch` uses it only for runs that may shrink.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy


class SteppedScaling(ElasticScalingPolicy):
    """Starts with the largest of `sizes` that there is room for, shrinks after a loss, and grows when nodes join."""

    def __init__(self, scaling_config: Any, sizes: Sequence[int]) -> None:
        super().__init__(scaling_config)
        self._sizes = sorted(sizes)

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        return largest_size(self._sizes, super()._count_possible_workers(reserved_resources))


def largest_size(sizes: Sequence[int], room: int) -> int:
    """The largest of the possible numbers of workers that fits, or 0 (below every smallest number, so Ray waits)."""
    return max((size for size in sizes if size <= room), default=0)
