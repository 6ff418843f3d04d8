"""Following a job in the terminal: why it waits, what it prints, how far it is, and how it ended."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

from cluster.durations import duration
from cluster.errors import printable
from cluster.jobs.job import PENDING, SUCCEEDED, JobState
from cluster.jobs.job_server import JobServer, Unreachable
from cluster.progress import Display
from cluster.secrets import masked

POLL_SECONDS = 0.5
SAY_AGAIN_SECONDS = 60.0  # that a job still waits
PATIENCE_SECONDS = 600.0  # with a cluster that does not answer
NUM_LAST_LINES = 20

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PROGRESS = re.compile(r"^(?P<title>[\w .-]{1,40}): step (?P<step>\d+)/(?P<steps>\d+)\b")
_FROM_RAY = re.compile(r"^(Running entrypoint for job |[\d:, -]+\tINFO job_manager\.py)")


def follow(server: JobServer, job_id: str, show: Callable[[str], None], *, skip: int = 0) -> JobState:
    """Shows what a job prints until it ends, except the first `skip` characters; returns how it ended.

    A line that breaks is taken up where it broke.
    Raises Unreachable when the cluster is silent for ten minutes.
    """
    return asyncio.run(_follow(server, job_id, show, skip))


async def _follow(server: JobServer, job_id: str, show: Callable[[str], None], skip: int) -> JobState:
    lines = Lines(show, skip)
    answered = time.monotonic()
    said, silent = time.monotonic() - SAY_AGAIN_SECONDS + 2.0, False
    while True:
        try:
            state = await asyncio.to_thread(server.state, job_id)
            answered, silent = time.monotonic(), False
        except Unreachable:
            if time.monotonic() - answered > PATIENCE_SECONDS:
                raise
            if not silent:
                show("the cluster does not answer; trying again")
                silent = True
            await asyncio.sleep(5 * POLL_SECONDS)
            continue
        if state.over:
            lines.take_all(await asyncio.to_thread(server.logs, job_id))
            return state
        if state.status == PENDING:
            if time.monotonic() - said > SAY_AGAIN_SECONDS:
                show(f"{job_id} has not started: {await asyncio.to_thread(server.why_pending, state)}")
                said = time.monotonic()
        else:
            lines.restart()
            async for piece in server.tail(job_id):
                lines.take(piece)
        await asyncio.sleep(POLL_SECONDS)


class Lines:
    """Makes whole, clean lines of pieces of a log, each shown once also when the log
    is read again from its beginning.
    """

    def __init__(self, show: Callable[[str], None], skip: int = 0) -> None:
        self._show = show
        self._text, self._shown = "", skip

    def restart(self) -> None:
        """The log is read again from its beginning."""
        self._text = ""

    def take(self, piece: str) -> None:
        """The next piece of the log."""
        self._text += piece
        end = self._text.rfind("\n") + 1
        self._show_until(end)

    def take_all(self, text: str) -> None:
        """The whole log of a job that ended."""
        self._text = text
        self._show_until(len(text))

    def _show_until(self, end: int) -> None:
        if end <= self._shown:
            return
        for line in clean(self._text[self._shown : end]):
            self._show(line)
        self._shown = end


def clean(text: str) -> list[str]:
    """The lines of a job's log, harmless to a terminal and without what Ray prints about its own work."""
    lines = (_COLOURS.sub("", line.rsplit("\r", 1)[-1]) for line in text.replace("\r\n", "\n").split("\n"))
    kept = [printable(masked(line), keep="\t") for line in lines if not _FROM_RAY.match(line)]
    return kept[:-1] if kept and not kept[-1] else kept


def last_lines(server: JobServer, job_id: str, count: int = NUM_LAST_LINES) -> list[str]:
    """The end of a job's log."""
    return [line for line in clean(server.logs(job_id)) if line.strip()][-count:]


def ending(state: JobState) -> str:
    """How a job ended, in words."""
    took = f" after {duration(state.ended - state.started)}" if state.ended and state.started else ""
    if state.status == SUCCEEDED:
        return f"{state.id} is done{took}"
    if state.status == "STOPPED":
        return f"{state.id} was stopped{took}"
    if state.driver_exit_code:
        signal = f" (signal {-state.driver_exit_code})" if state.driver_exit_code < 0 else ""
        return f"{state.id} failed{took} with exit code {state.exit_code}{signal}"
    reason = next((line for line in clean(state.message) if line.strip()), "the cluster gives no reason")
    return f"{state.id} failed{took}: {reason}"


class Terminal(Display):
    """Prints lines; on a terminal, lines that say `TITLE: step N/M` move instead."""

    def show(self, line: str) -> None:
        """Shows one line."""
        found = _PROGRESS.match(line) if self.is_terminal else None
        if found is None:
            self.say(line)
        else:
            self.update(found["title"], int(found["step"]), int(found["steps"]), line.partition(": ")[2])
