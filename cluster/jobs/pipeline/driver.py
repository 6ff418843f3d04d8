"""The driver of a pipeline: starts what is ready, watches what runs, records how it ended.
It may die at any moment.

Before a job is started its id is written down; after it ended its end is. A driver that comes later finds
each stage either done, or with a job to look up, or to be started. Ids are made of (pipeline, a token in
out, stage, attempt), so that two drivers that start the same stage mean the same job.
"""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

from cluster import storage
from cluster.durations import duration
from cluster.errors import EXIT_FAILED, EXIT_INTERRUPTED, UserError, nearest
from cluster.jobs.job import Job, JobState, check_secrets
from cluster.jobs.job_server import JOB_VARIABLE, Unreachable
from cluster.jobs.pipeline.plan import Next, Record, Status, left_out, ready, resumed, verdict
from cluster.jobs.pipeline.runners import Runner
from cluster.jobs.pipeline.settings import Pipeline, Stage, filled, placeholders
from cluster.jobs.pipeline.state import State
from cluster.jobs.pipeline.table import write_results
from cluster.training.rank_context import stopped_by

PATIENCE_SECONDS = 1800.0  # with a cluster that does not answer
# before the second attempt; twice as long before each further one
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 60.0


class Driver:
    """Runs one pipeline to its end, or until it is told to stop."""

    def __init__(self, pipeline: Pipeline, runner: Runner, show: Callable[[str], None]) -> None:
        self._pipeline, self._runner = pipeline, runner
        self._print = show
        self._printing = threading.Lock()
        self._stages = {stage.name: stage for stage in pipeline.stages}
        self._state = State(pipeline.out)
        self._records: dict[str, Record] = {}
        self._status = dict.fromkeys(self._stages, Status.WAITING)
        self._reason: dict[str, str] = {}
        self._retries_left = dict.fromkeys(self._stages, pipeline.retries)
        self._not_before = dict.fromkeys(self._stages, 0.0)
        self._answered = time.monotonic()
        self._signal = 0
        self._token = ""

    def run(self) -> int:
        """The main flow. Returns the exit code: 0 when all stages are done, 1 when one failed,
        130 when interrupted.
        """
        storage.check_writable(self._pipeline.out)
        self._token = self._state.token()
        with stopped_by(self._take_signal):
            while not self._signal:
                waits = False
                for name in ready(self._pipeline.after, self._status):
                    stage = self._stages[name]
                    running = [self._stages[one].settings.cpus for one in self._all(Status.RUNNING)]
                    if time.monotonic() < self._not_before[name] or not self._runner.has_room(
                        stage.settings.cpus, running
                    ):
                        waits = True
                        continue
                    self._begin(stage)
                at_work = self._all(Status.RUNNING)
                for name in at_work:
                    self._watch(name)
                if not at_work and not waits and not ready(self._pipeline.after, self._status):
                    return self._finish()
                if at_work or waits:
                    time.sleep(self._runner.poll_seconds)
        return self._leave()

    # -- one stage ------------------------------------------------------------------------------------------

    def _begin(self, stage: Stage) -> None:
        name = stage.name
        record = self._records.get(name) or self._state.read(name)
        try:
            command = tuple(filled(stage.words, self._values(stage)))
            check_secrets(Job(command))  # nothing that holds one is written down
        except UserError as error:
            self._fail(name, str(error))
            return
        made_from = {other: self._records[other].attempt for other in stage.after}
        try:
            job = self._runner.look(record.job) if record and record.status == Status.RUNNING else None
        except Unreachable as error:
            self._be_patient(error)
            return
        step = resumed(
            record,
            command=command,
            made_from=made_from,
            job=job,
            out_is_there=record is not None and record.status == Status.DONE and self._out_is_there(stage),
        )
        if record is not None:
            self._records[name] = record
        if step == Next.NOTHING:
            self._status[name] = Status.DONE
            self._say(name, "is done already")
        elif step in (Next.ATTACH, Next.COLLECT):
            assert record is not None
            self._status[name] = Status.RUNNING
            if step == Next.ATTACH:
                self._say(name, f"runs already as job {record.job}")
                self._runner.follow(record.job, self._shower(name), anew=False)
        elif step == Next.REFUSE_OTHER:
            assert record is not None
            self._fail(
                name,
                f"its job {record.job} runs with another command; stop it first (cluster stop {record.job})",
            )
        elif step == Next.REFUSE_OLD:
            self._fail(
                name,
                f"it was made from an earlier run of a stage it depends on; remove {stage.out} to make it "
                "again",
            )
        else:
            self._start(stage, command, made_from, record)

    def _start(
        self, stage: Stage, command: tuple[str, ...], made_from: dict[str, int], former: Record | None
    ) -> None:
        name = stage.name
        attempt = former.attempt + 1 if former else 1
        seconds = former.seconds if former else 0.0
        record = Record(Status.RUNNING, attempt, self._job_id(name, attempt), command, made_from, seconds)
        job = Job(command, stage.settings.cpus, stage.settings.gpus)
        try:
            self._state.write(name, record)
            self._runner.start(record.job, job)
        except Unreachable as error:
            self._be_patient(error)
            return
        except UserError as error:
            self._records[name] = record
            self._fail(name, str(error))
            return
        self._records[name] = record
        self._status[name] = Status.RUNNING
        if stage.settings.title is not None:
            self._show(f"\n{stage.settings.title}")
        self._show(f"$ {shlex.join(command)}")
        again = f" again (attempt {attempt})" if attempt > 1 else ""
        self._say(name, f"starts{again} as job {record.job}")
        self._runner.follow(record.job, self._shower(name), anew=True)

    def _watch(self, name: str) -> None:
        record = self._records[name]
        try:
            job = self._runner.look(record.job)
        except Unreachable as error:
            self._be_patient(error)
            return
        self._answered = time.monotonic()
        if job is not None and not job.over:
            return
        self._runner.shown(record.job)
        status, reason = verdict(job, retries_left=self._retries_left[name])
        if status == Status.DONE and not self._out_is_there(self._stages[name]):
            status = Status.FAILED
            reason = (
                f"its job is done, but nothing is at {self._stages[name].out}: the cluster and this machine "
                "do not see the same folder; give out as a URL, or submit the pipeline as a job"
            )
        self._records[name] = replace(
            record,
            status=Status.FAILED if status == Status.WAITING else status,
            seconds=record.seconds + _seconds(job),
            exit_code=None if job is None else job.exit_code,
            reason=reason,
        )
        self._state.write(name, self._records[name])
        if status == Status.WAITING:
            tries = self._pipeline.retries - self._retries_left[name]
            pause = min(PAUSE_SECONDS * 2**tries, LONGEST_PAUSE_SECONDS)
            self._retries_left[name] -= 1
            self._not_before[name] = time.monotonic() + pause
            self._status[name] = Status.WAITING
            self._say(name, f"ended early ({reason}); it is started again in {duration(pause)}")
        elif status == Status.DONE:
            self._status[name] = Status.DONE
            self._say(name, f"is done after {duration(self._records[name].seconds)}")
        else:
            for line in self._runner.last_lines(record.job):
                self._show(f"{name} | {line}")
            self._fail(name, reason)

    def _fail(self, name: str, reason: str) -> None:
        self._status[name] = Status.FAILED
        self._reason[name] = reason
        self._say(name, f"failed: {reason}")
        for other, blamed in left_out(self._pipeline.after, self._status).items():
            if blamed == name:
                self._say(other, f"is left out, because it needs {name}")

    def _out_is_there(self, stage: Stage) -> bool:
        return not stage.names_out or storage.exists(stage.out)

    def _values(self, stage: Stage) -> dict[str, Any]:
        """What {STAGE.KEY} stands for, read from the results of the stages before.
        Raises UserError for a missing key.
        """
        values: dict[str, Any] = {}
        for key in placeholders(stage.words):
            other, _, inner = key.partition(".")
            if other not in self._stages:
                continue
            if inner == "out":
                values[key] = self._stages[other].out
                continue
            url = self._stages[other].result_url
            found = storage.read_json(url)
            for part in inner.split("."):
                if not isinstance(found, dict) or part not in found:
                    known = ", ".join(found) if isinstance(found, dict) else "no keys"
                    hint = nearest(part, found) if isinstance(found, dict) else ""
                    raise UserError(f"{{{key}}} is not in {url}{hint} (there: {known})")
                found = found[part]
            values[key] = found
        return values

    def _all(self, status: Status) -> list[str]:
        return [name for name, now in self._status.items() if now == status]

    # -- the end --------------------------------------------------------------------------------------------

    def _finish(self) -> int:
        for name, blamed in left_out(self._pipeline.after, self._status).items():
            self._status[name] = Status.LEFT_OUT
            self._reason[name] = f"needs {blamed}"
        seconds = {
            name: self._records[name].seconds if name in self._records else 0.0 for name in self._stages
        }
        table = write_results(self._pipeline, self._status, self._reason, seconds)
        self._show(f"\n{table}")
        self._show(f"results: {storage.join(self._pipeline.out, 'results.md')} and results.json next to it")
        bad = [name for name, status in self._status.items() if status != Status.DONE]
        if not bad:
            return 0
        self._show(f"not done: {', '.join(bad)}; the same command does what is missing")
        return EXIT_FAILED

    def _leave(self) -> int:
        running = [self._records[name].job for name in self._all(Status.RUNNING)]
        # `cluster stop` of the pipeline's own job
        stop = self._signal == signal.SIGTERM and JOB_VARIABLE in os.environ
        if self._runner.lasting and running and not stop:
            self._show(
                f"detached; these jobs go on: {', '.join(running)}. The same command comes back to them"
            )
            return EXIT_INTERRUPTED
        for job in running:
            self._runner.stop(job)
        if running:
            self._show(f"stopping {', '.join(running)}, which may write a checkpoint first")
        self._runner.close()
        self._show("interrupted; the same command continues")
        return EXIT_INTERRUPTED

    def _take_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    # -- words ----------------------------------------------------------------------------------------------

    def _be_patient(self, error: Unreachable) -> None:
        silent = time.monotonic() - self._answered
        if silent > PATIENCE_SECONDS:
            raise error
        self._show(f"{error}; trying again for {duration(PATIENCE_SECONDS - silent)}")
        time.sleep(10)

    def _job_id(self, stage: str, attempt: int) -> str:
        return f"{self._pipeline.name}-{self._token}-{stage}-{attempt}"

    def _say(self, name: str, text: str) -> None:
        self._show(f"[{name}] {text}")

    def _shower(self, name: str) -> Callable[[str], None]:
        return lambda line: self._show(f"{name} | {line}")

    def _show(self, text: str) -> None:
        with self._printing:
            self._print(text)


def _seconds(job: JobState | None) -> float:
    return job.ended - job.started if job and job.ended and job.started else 0.0
