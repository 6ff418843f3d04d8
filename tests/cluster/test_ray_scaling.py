"""Which number of workers a run goes on with."""

from __future__ import annotations

import pytest
from ray.train import ScalingConfig

from cluster.training.ray_scaling import SteppedScaling, max_size


@pytest.mark.parametrize(
    ("sizes", "room", "size"), [([2, 4, 8], 8, 8), ([2, 4, 8], 7, 4), ([2, 4, 8], 3, 2), ([2, 4, 8], 1, 0), ([], 3, 0)]
)
def test_the_largest_possible_size_that_fits(sizes: list[int], room: int, size: int) -> None:
    assert max_size(sizes, room) == size


def test_nodes_hold_whole_workers_and_the_rest_is_left() -> None:
    config: object = ScalingConfig(num_workers=(2, 8), resources_per_worker={"CPU": 4})  # type: ignore[arg-type]
    policy = SteppedScaling(config, [2, 4, 8], lambda: None)
    # 7 CPUs hold one worker, 9 and 8 two each: five workers, of which four divide the work
    assert policy._count_possible_workers({"a": {"CPU": 7.0}, "b": {"CPU": 9.0}, "c": {"CPU": 8.0}}) == 4
    assert policy._count_possible_workers({"a": {"CPU": 7.0}}) == 0
