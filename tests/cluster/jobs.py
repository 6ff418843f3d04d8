"""Training functions for the tests of workers, in a module that Ray's workers can import; also a command to start."""

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
from cluster.training.place import Place
from cluster.training.workers import run_workers


@dataclass(frozen=True)
class Numbers:
    """Settings of these functions."""

    count: int = 5
    text: str = "a {brace} and\na second line"


class Collapsed(RunStopped):
    """A stop with a class of its own."""


def count(place: Place, settings: Numbers) -> dict[str, Any]:
    """Reports as many records as asked for, sums over ranks, and says what it saw."""
    for i in range(settings.count):
        place.report({"i": i, "rank": place.rank, "pair": (1, 2)})
    total = torch.tensor([float(place.rank + 1)])
    if place.world_size > 1:
        distributed.all_reduce(total)
    return {
        "total": total,  # a tensor is welcome
        "rank": place.rank,
        "world_size": place.world_size,
        "device": place.device.type,
        "num_threads": torch.get_num_threads(),
        "folder": os.getcwd(),
        "attempt": place.attempt,
        "restarts": place.restarts,
    }


def wait_for_stop(place: Place, settings: Numbers) -> list[bool]:
    """Runs until a stop is asked for; returns whether each rank saw it."""
    place.report({"ready": True})
    deadline = time.monotonic() + 30
    while not place.stop_requested() and time.monotonic() < deadline:
        time.sleep(0.02)
    seen = torch.tensor([float(place.stop_requested())])
    everywhere = [torch.zeros(1) for _ in range(place.world_size)]
    distributed.all_gather(everywhere, seen)
    return [bool(one) for one in everywhere]


def hang(place: Place, settings: Numbers) -> None:
    """Says that it is ready, and never looks again."""
    place.report({"ready": True})
    time.sleep(100)


def _wait_for_the_others() -> None:
    distributed.all_reduce(torch.zeros(1))  # rank 1 never comes


def refuse(place: Place, settings: Numbers) -> None:
    """Rank 1 finds a user's mistake while rank 0 is in a collective."""
    if place.attempt > 0:
        raise AssertionError("a user's mistake was tried again")
    if place.rank == 1:
        raise UserError(settings.text)
    _wait_for_the_others()


def collapse(place: Place, settings: Numbers) -> None:
    """Rank 0 stops by a rule."""
    place.report({"last": "words"})
    raise Collapsed("the features are all the same")


def fail(place: Place, settings: Numbers) -> None:
    """Rank 1 fails as a bug would, in each attempt."""
    if place.rank == 1:
        {}[settings.text]
    _wait_for_the_others()


def lose_a_worker(place: Place, settings: Numbers) -> tuple[int, tuple[str, ...]]:
    """Rank 1 is killed in the first attempt."""
    place.report({"attempt": place.attempt})
    if place.attempt == 0:
        if place.rank == 1:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        _wait_for_the_others()
    total = torch.tensor([float(place.attempt)])
    distributed.all_reduce(total)
    assert total.item() == 2 * place.attempt  # the ranks agree on the number
    return place.attempt, place.restarts


def be_preempted(place: Place, settings: Numbers) -> tuple[int, bool]:
    """Gets the notice that Ray's watcher of nodes would bring, in the first attempt, and obeys it."""
    from ray.train import PreemptionInfo

    if place.attempt == 0:
        deadline_ms = int((time.time() + 3) * 1000)
        notice = PreemptionInfo(deadline_ms=deadline_ms, preempted_node_to_ranks={"this": [0]})
        ray_private.preemption_notices().preemption_info = notice
        while not place.stop_requested():
            time.sleep(0.05)
        return place.attempt, False  # a checkpoint is written; the result of a run cut short does not count
    return place.attempt, not place.stop_requested()


def lose_the_controller(place: Place, settings: Numbers) -> tuple[int, tuple[str, ...]]:
    """Ray's controller is killed in the first attempt."""
    import ray

    if place.attempt == 0:
        ray.kill(ray_private.controller())
        time.sleep(60)
    return place.attempt, place.restarts


def main() -> int:
    """Runs the function named by the first argument on two workers and prints what comes."""
    print("driver", os.getpid(), flush=True)
    result = run_workers(
        globals()[sys.argv[1]],
        Numbers(),
        num_workers=2,
        storage_url=sys.argv[2],
        on_record=lambda record: print(record, flush=True),
    )
    print("result", result)
    return 0


if __name__ == "__main__":
    # by its importable name, so that workers load the module that classes were pickled from
    from tests.cluster import jobs

    sys.exit(run_command(jobs.main))
