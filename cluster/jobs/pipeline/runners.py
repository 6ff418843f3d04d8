"""Where a pipeline's stages run: as jobs of a Ray cluster, or as processes on this machine.

Without a cluster there is no Ray head for the jobs either: it would cost a gigabyte, ten seconds and open
ports, to start the same commands on the same machine.
They start their own Ray workers as they do without a pipeline.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

from cluster.errors import UserError
from cluster.jobs.following import NUM_LAST_LINES, clean, follow, last_lines
from cluster.jobs.job import FAILED, RUNNING, SUCCEEDED, Job, JobState
from cluster.jobs.job_server import ADDRESS_VARIABLES, AlreadyThere, JobServer
from cluster.jobs.pipeline import guard

Show = Callable[[str], None]
SHOWN_SECONDS = 5.0


class Runner(Protocol):
    """What a pipeline asks of what runs its stages."""

    lasting: bool  # whether jobs outlive this process
    poll_seconds: float

    def has_room(self, cpus: float, running: Sequence[float]) -> bool:
        """Whether a job that asks for so many CPUs may be handed over,
        beside jobs that asked for so many.
        """

    def start(self, job_id: str, job: Job) -> None:
        """Starts a job, or does nothing when a job of this id is there."""

    def look(self, job_id: str) -> JobState | None:
        """The state of a job; None when nothing is known of it. Raises Unreachable for now."""

    def follow(self, job_id: str, show: Show, *, anew: bool) -> None:
        """Shows what a job prints from now on, in the background; `anew`: also what it printed so far."""

    def shown(self, job_id: str) -> None:
        """Waits, but not long, until all is shown that a job printed before its end."""

    def last_lines(self, job_id: str) -> list[str]:
        """The end of what a job printed."""

    def stop(self, job_id: str) -> None:
        """Asks a job to end and returns at once, or soon."""

    def close(self) -> None:
        """Ends what is not lasting."""


class RayJobs:
    """Stages as jobs of a Ray cluster, which places them side by side as its resources allow."""

    lasting = True
    poll_seconds = 0.5

    def __init__(self, server: JobServer, runtime_env: Mapping[str, Any]) -> None:
        self._server, self._runtime_env = server, runtime_env
        self._followers: dict[str, threading.Thread] = {}

    def has_room(self, cpus: float, running: Sequence[float]) -> bool:
        """Always: the cluster queues."""
        return True

    def start(self, job_id: str, job: Job) -> None:
        """Submits a job; one that another driver submitted under the same id serves as well."""
        with suppress(AlreadyThere):
            self._server.submit(Job(job.command, job.cpus, job.gpus, self._runtime_env), job_id)

    def look(self, job_id: str) -> JobState | None:
        """Asks the cluster."""
        return self._server.look(job_id)

    def follow(self, job_id: str, show: Show, *, anew: bool) -> None:
        """Follows in a thread; only what is shown depends on it."""

        def work() -> None:
            with suppress(UserError):
                skip = 0 if anew else len(self._server.logs(job_id))
                follow(self._server, job_id, show, skip=skip)

        self._followers[job_id] = _in_thread(work)

    def shown(self, job_id: str) -> None:
        """Waits for the thread that follows."""
        if job_id in self._followers:
            self._followers.pop(job_id).join(SHOWN_SECONDS)

    def last_lines(self, job_id: str) -> list[str]:
        """From the cluster."""
        with suppress(UserError):
            return last_lines(self._server, job_id)
        return []

    def stop(self, job_id: str) -> None:
        """Asks the cluster."""
        with suppress(UserError):
            self._server.stop(job_id)

    def close(self) -> None:
        """Jobs go on."""


class LocalProcesses:
    """Stages as processes of this machine; they end with this process, however it ends."""

    lasting = False
    poll_seconds = 0.1

    def __init__(self, folder: Path, show: Show) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = _locked(folder / ".lock", show)
        self._running: dict[str, _Process] = {}
        self._followers: dict[str, threading.Thread] = {}

    def has_room(self, cpus: float, running: Sequence[float]) -> bool:
        """Side by side as the machine's CPUs allow; a job that asks for none takes the whole machine."""
        return not running or (min(cpus, *running) > 0 and cpus + sum(running) <= num_cpus())

    def start(self, job_id: str, job: Job) -> None:
        """Starts a process that prints into a file."""
        if job_id not in self._running:
            self._running[job_id] = _Process(job_id, job, self._folder / f"{job_id}.log", self._lock)

    def look(self, job_id: str) -> JobState | None:
        """Only processes of this driver are known; those of an earlier one ended with it."""
        process = self._running.get(job_id)
        return None if process is None else process.state()

    def follow(self, job_id: str, show: Show, *, anew: bool) -> None:
        """Reads the file while it grows."""
        process = self._running[job_id]
        self._followers[job_id] = _in_thread(lambda: process.follow(show))

    def shown(self, job_id: str) -> None:
        """Waits for the thread that follows."""
        if job_id in self._followers:
            self._followers.pop(job_id).join(SHOWN_SECONDS)

    def last_lines(self, job_id: str) -> list[str]:
        """From the file."""
        path = self._folder / f"{job_id}.log"
        if not path.exists():
            return []
        return [line for line in clean(path.read_text(errors="replace")) if line.strip()][-NUM_LAST_LINES:]

    def stop(self, job_id: str) -> None:
        """Asks the process to end; it may write a checkpoint."""
        if job_id in self._running:
            self._running[job_id].stop()

    def close(self) -> None:
        """Ends all processes and waits for them."""
        for process in self._running.values():
            process.stop()
        for process in self._running.values():
            process.wait()
        self._lock.close()


class _Process:
    """One command in a process group of its own, with a guard that outlives this process."""

    def __init__(self, job_id: str, job: Job, log: Path, lock: IO[bytes]) -> None:
        command = [sys.executable if word in ("python", "python3") else word for word in job.command[:1]]
        environment = {name: value for name, value in os.environ.items() if name not in ADDRESS_VARIABLES}
        self._id, self._words, self._log = job_id, " ".join(job.command), log
        self._begun = time.time()
        if job.cpus:
            environment["OMP_NUM_THREADS"] = str(max(1, int(job.cpus)))
        # -S -E: it imports nothing but the standard library
        self._guard = subprocess.Popen(
            [sys.executable, "-S", "-E", guard.__file__], stdin=subprocess.PIPE, start_new_session=True
        )
        with open(log, "wb") as file:
            try:
                self._child = subprocess.Popen(
                    [*command, *job.command[1:]],
                    env={**environment, "PYTHONUNBUFFERED": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    # it holds the lock as long as it lives, whatever becomes of us
                    pass_fds=[lock.fileno()],
                )
            except OSError as error:
                self._guard.communicate()
                raise UserError(f"cannot start {job.command[0]!r}: {error.strerror}") from error
        assert self._guard.stdin is not None
        self._guard.stdin.write(str(self._child.pid).encode())
        self._guard.stdin.flush()

    def state(self) -> JobState:
        """Whether it runs, or how it ended."""
        code = self._child.poll()
        if code is None:
            return JobState(self._id, RUNNING, self._words, started=self._begun)
        status = SUCCEEDED if code == 0 else FAILED
        return JobState(
            self._id, status, self._words, driver_exit_code=code, started=self._begun, ended=time.time()
        )

    def follow(self, show: Show) -> None:
        """Shows what it prints until it ends."""
        rest = ""
        with open(self._log, encoding="utf-8", errors="replace") as file:
            while True:
                over = self._child.poll() is not None
                rest += file.read()
                whole, newline, rest = rest.rpartition("\n")
                if over and rest:
                    whole, newline, rest = whole + newline + rest, "\n", ""
                for line in clean(whole + newline) if newline else []:
                    show(line)
                if over:
                    return
                time.sleep(0.1)

    def stop(self) -> None:
        """Asks it to end."""
        if self._child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, 15)

    def wait(self) -> None:
        """Until it and its guard are gone; the guard ends what does not want to."""
        self._guard.communicate()
        self._child.wait()


def num_cpus() -> int:
    """CPUs of this machine that this process may use."""
    return len(os.sched_getaffinity(0))


def _in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name="follow", daemon=True)
    thread.start()
    return thread


def _locked(path: Path, show: Show) -> IO[bytes]:
    """Waits until no driver of this pipeline, and no process that one left, runs on this machine."""
    file = open(path, "ab")  # noqa: SIM115 - held while the pipeline runs
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        show(
            "this pipeline runs already, or a stage that was cut off is writing its checkpoint; waiting "
            "for its end"
        )
        fcntl.flock(file, fcntl.LOCK_EX)
    return file
