"""A job in plain values: what to run, how it ended, and the shell line for a node of the cluster."""

from __future__ import annotations

import secrets as randomness
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import EXIT_FAILED, EXIT_INTERRUPTED, UserError
from cluster.secrets import masked

PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED = "PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"


@dataclass(frozen=True)
class Job:
    """What to run. `cpus` and `gpus` are those of the command itself;
    Ray workers that it starts ask for their own.
    """

    command: Sequence[str]
    cpus: float = 0.0
    gpus: float = 0.0
    runtime_env: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JobState:
    """What the cluster knows of a job. `status` is PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED;
    times are Unix seconds.
    """

    id: str
    status: str
    command: str
    message: str = ""
    driver_exit_code: int | None = None
    started: float | None = None
    ended: float | None = None
    cpus: float = 0.0
    gpus: float = 0.0

    @property
    def over(self) -> bool:
        """Whether it ended, in whatever way."""
        return self.status in (SUCCEEDED, FAILED, STOPPED)

    @property
    def exit_code(self) -> int:
        """The exit code that a shell would have seen: the command's own, 128 + n for signal n;
        130 when it was stopped.
        """
        code = self.driver_exit_code
        if self.status == SUCCEEDED:
            return 0
        if self.status == STOPPED:
            return EXIT_INTERRUPTED
        if code is None or code == 0:
            return EXIT_FAILED
        return code if code > 0 else 128 - code


def new_id(name: str) -> str:
    """An id that no other job has: the name and when it was submitted."""
    return f"{name}-{time.strftime('%m%d-%H%M%S')}-{randomness.token_hex(2)}"


def entrypoint(command: Sequence[str]) -> str:
    """The shell line of a command. A leading `python` becomes the interpreter that the cluster's node has.

    That is this process's own where the node has the same environment at the same path (this machine, a
    shared file system, the same image), else the first `python` there. `exec` keeps the shell out
    of the way of signals and exit code.
    """
    if not command:
        raise UserError(
            "no command; give it after --, for example: -- python -m pretrain CONFIG out=s3://bucket/run"
        )
    first, *rest = command
    words = shlex.join(rest)
    if first not in ("python", "python3"):
        return f"exec {shlex.join(command)}"
    # no environment of its own: the same path elsewhere may be a bare system's
    if sys.prefix == sys.base_prefix:
        return f"exec {first} {words}"
    own = shlex.quote(sys.executable)
    return f"P={own}; [ -x $P ] || P={first}; exec $P {words}"


def check_secrets(job: Job) -> None:
    """Raises UserError when a command or its runtime environment holds a secret,
    which the dashboard would show.
    """
    for word in job.command:
        name, _, value = word.partition("=")
        if masked(word) != word and not value.replace(".", "").lstrip("-").isdigit():
            raise UserError(
                f"{name} holds a secret, and everybody who reaches the cluster's dashboard can read a job's "
                "command; give it to the nodes instead (environment of the pods, an instance role, "
                "~/.aws/credentials)"
            )
    for name, value in dict(job.runtime_env.get("env_vars", {})).items():
        if masked(f"{name}={value}") != f"{name}={value}":
            raise UserError(
                f"env_vars.{name} looks like a secret, and the cluster's dashboard shows a job's runtime "
                "environment; give it to the nodes instead (environment of the pods, an instance role)"
            )
