"""Training functions for the tests of workers, in a module that Ray's workers can import;
also a command to start.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from cluster.errors import RunStopped, UserError, run_command
from cluster.training import ray_private
from cluster.training.rank_context import RankContext
from cluster.training.workers import Workers, run_workers


@dataclass(frozen=True)
class Numbers:
    """Settings of these functions."""

    count: int = 5
    text: str = "a {brace} and\na second line"


class Collapsed(RunStopped):
    """A stop with a class of its own."""


def count(context: RankContext, settings: Numbers) -> dict[str, Any]:
    """Reports as many records as asked for, sums over ranks, and says what it saw."""
    for i in range(settings.count):
        context.report({"i": i, "rank": context.rank, "pair": (1, 2)})
    total = torch.tensor([float(context.rank + 1)])
    if context.world_size > 1:
        distributed.all_reduce(total)
    return {
        "total": total,  # a tensor is welcome
        "rank": context.rank,
        "world_size": context.world_size,
        "device": context.device.type,
        "num_threads": torch.get_num_threads(),
        "folder": os.getcwd(),
        "attempt": context.attempt,
        "restarts": context.restarts,
    }


def wait_for_stop(context: RankContext, settings: Numbers) -> list[bool]:
    """Runs until a stop is asked for; returns whether each rank saw it."""
    context.report({"ready": True})
    deadline = time.monotonic() + 30
    while not context.stop_requested() and time.monotonic() < deadline:
        time.sleep(0.02)
    seen = torch.tensor([float(context.stop_requested())])
    everywhere = [torch.zeros(1) for _ in range(context.world_size)]
    distributed.all_gather(everywhere, seen)
    return [bool(one) for one in everywhere]


def hang(context: RankContext, settings: Numbers) -> None:
    """Says that it is ready, and never looks again."""
    context.report({"ready": True})
    time.sleep(100)


def _wait_for_the_others() -> None:
    distributed.all_reduce(torch.zeros(1))  # rank 1 never comes


def refuse(context: RankContext, settings: Numbers) -> None:
    """Rank 1 finds a user's mistake while rank 0 is in a collective."""
    if context.attempt > 0:
        raise AssertionError("a user's mistake was tried again")
    if context.rank == 1:
        raise UserError(settings.text)
    _wait_for_the_others()


def collapse(context: RankContext, settings: Numbers) -> None:
    """Rank 0 stops by a rule."""
    context.report({"last": "words"})
    raise Collapsed("the features are all the same")


def fail(context: RankContext, settings: Numbers) -> None:
    """Rank 1 fails as a bug would, in each attempt."""
    if context.rank == 1:
        {}[settings.text]
    _wait_for_the_others()


def lose_a_worker(context: RankContext, settings: Numbers) -> tuple[int, tuple[str, ...]]:
    """Rank 1 is killed in the first attempt."""
    context.report({"attempt": context.attempt})
    if context.attempt == 0:
        if context.rank == 1:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        _wait_for_the_others()
    total = torch.tensor([float(context.attempt)])
    distributed.all_reduce(total)
    assert total.item() == 2 * context.attempt  # the ranks agree on the number
    return context.attempt, context.restarts


def be_preempted(context: RankContext, settings: Numbers) -> tuple[int, bool]:
    """Gets the notice that Ray's watcher of nodes would bring, in the first attempt, and obeys it."""
    from ray.train import PreemptionInfo

    if context.attempt == 0:
        deadline_ms = int((time.time() + 3) * 1000)
        notice = PreemptionInfo(deadline_ms=deadline_ms, preempted_node_to_ranks={"this": [0]})
        ray_private.preemption_notices().preemption_info = notice
        while not context.stop_requested():
            time.sleep(0.05)
        return (
            context.attempt,
            False,
        )  # a checkpoint is written; the result of a run cut short does not count
    return context.attempt, not context.stop_requested()


def lose_the_controller(context: RankContext, settings: Numbers) -> tuple[int, tuple[str, ...]]:
    """Ray's controller is killed in the first attempt."""
    import ray

    if context.attempt == 0:
        ray.kill(ray_private.controller())
        time.sleep(60)
    return context.attempt, context.restarts


def main() -> int:
    """Runs the function named by the first argument on two workers and prints what comes."""
    print("driver", os.getpid(), flush=True)
    result = run_workers(
        globals()[sys.argv[1]],
        Numbers(),
        Workers(num_workers=2, storage_url=sys.argv[2]),
        on_record=lambda record: print(record, flush=True),
    )
    print("result", result)
    return 0


if __name__ == "__main__":
    # by its importable name, so that workers load the module that classes were pickled from
    from tests.cluster import jobs

    sys.exit(run_command(jobs.main))
