"""What is to be done next: pure functions of the stages, their records, and how their jobs ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from graphlib import CycleError, TopologicalSorter

from cluster.errors import EXIT_INTERRUPTED, UserError, nearest
from cluster.jobs.job import FAILED as JOB_FAILED
from cluster.jobs.job import STOPPED, SUCCEEDED, JobState

After = Mapping[str, Sequence[str]]


class Status(StrEnum):
    """Of a stage. Only running, done and failed are ever written down."""

    WAITING = "waiting"  # for other stages, or for its next start
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    LEFT_OUT = "left out"  # because of a stage before it


class Next(StrEnum):
    """What to do with a stage."""

    START = "start"  # a job
    ATTACH = "attach"  # to the job that runs
    COLLECT = "collect"  # the job that ended meanwhile
    NOTHING = "nothing"  # it is done
    REFUSE_OTHER = "refuse: its job runs with another command"
    REFUSE_OLD = "refuse: it was made from an earlier run of a stage it depends on"


@dataclass(frozen=True)
class Record:
    """What is noted of a stage in storage. `attempt` counts its jobs from 1;
    `made_from` holds those of the stages before.
    """

    status: Status
    attempt: int
    job: str
    command: tuple[str, ...]
    made_from: Mapping[str, int]
    seconds: float = 0.0
    exit_code: int | None = None
    reason: str = ""


def in_order(after: After) -> list[str]:
    """All stages, each behind those it waits for, else as they are given.
    Raises UserError for unknown names and rings.
    """
    for name, before in after.items():
        for other in before:
            if other not in after:
                raise UserError(
                    f"stage {name}: after names an unknown stage: {other!r}{nearest(other, after)} (known: "
                    f"{', '.join(after)})"
                )
    try:
        tuple(TopologicalSorter(after).static_order())
    except CycleError as error:
        ring = list(reversed(error.args[1]))
        raise UserError(f"the stages wait for each other: {' -> '.join(ring)}") from error
    order: list[str] = []
    while len(order) < len(after):
        order.append(next(name for name in after if name not in order and set(after[name]) <= set(order)))
    return order


def all_above(after: After) -> dict[str, set[str]]:
    """For each stage all that it waits for, near and far."""
    above: dict[str, set[str]] = {}
    for name in in_order(after):
        above[name] = {stage for other in after[name] for stage in (other, *above[other])}
    return above


def ready(after: After, status: Mapping[str, Status]) -> list[str]:
    """The waiting stages that wait for nothing any more, in order."""
    return [
        name
        for name in in_order(after)
        if status[name] == Status.WAITING and all(status[other] == Status.DONE for other in after[name])
    ]


def left_out(after: After, status: Mapping[str, Status]) -> dict[str, str]:
    """The waiting stages that can never start, each with the failed stage that is to blame."""
    blamed: dict[str, str] = {}
    for name in in_order(after):
        if status[name] != Status.WAITING:
            continue
        for other in after[name]:
            if status[other] == Status.FAILED:
                blamed.setdefault(name, other)
            elif other in blamed:
                blamed.setdefault(name, blamed[other])
    return blamed


def resumed(
    record: Record | None,
    *,
    command: Sequence[str],
    made_from: Mapping[str, int],
    job: JobState | None,
    out_is_there: bool,
) -> Next:
    """What to do with a stage whose turn it is.

    Args:
        record: what is noted of it, if anything.
        command: its words now.
        made_from: the attempts by which the stages before it are done.
        job: the job that is noted, if it runs or ended where jobs run; None when nothing is known of it.
        out_is_there: whether its folder exists.
    """
    if record is None:
        return Next.START
    same = tuple(command) == record.command
    if record.status == Status.DONE and out_is_there:
        if dict(record.made_from) != dict(made_from):
            return Next.REFUSE_OLD
        return Next.NOTHING if same else Next.START  # the command itself knows whether it may continue
    if record.status == Status.RUNNING and job is not None:
        if not job.over:
            return Next.ATTACH if same else Next.REFUSE_OTHER
        return Next.COLLECT if same else Next.START
    return Next.START


def verdict(job: JobState | None, *, retries_left: int) -> tuple[Status, str]:
    """What a stage is after its job came to an end, and why; WAITING is to be started again.

    A command that ended by itself is not repeated;
    one that was killed, interrupted or lost with its node is.
    """
    if job is not None and job.status == SUCCEEDED:
        return Status.DONE, ""
    if job is None:
        reason, again = "its job is lost: the cluster does not know it", True
    elif job.status == STOPPED:
        reason, again = "it was stopped", False
    elif job.driver_exit_code is None:
        reason, again = _first_line(job.message) or "its job ended without an exit code", True
    else:
        assert job.status == JOB_FAILED, job
        reason = f"exit code {job.exit_code}"
        again = job.exit_code == EXIT_INTERRUPTED or job.exit_code > 128
    if again and retries_left > 0:
        return Status.WAITING, reason
    return Status.FAILED, reason


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:200]
