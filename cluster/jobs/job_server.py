"""The job server of a Ray cluster, over HTTP: submit, look, list, stop, tail.
A user's mistake is a UserError.

Whoever reaches the dashboard reads the commands and runtime environments of all jobs,
so what holds a secret is refused.
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import UserError, nearest
from cluster.jobs.job import Job, JobState, check_secrets, entrypoint
from cluster.secrets import masked

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # in this order, as for Ray's own commands
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
JOB_VARIABLE = "FOVEA_JOB"  # in the environment of a job: its id
CONNECT_SECONDS = 10.0


class Unreachable(UserError):
    """The cluster does not answer, for now or for good."""


def address_of(given: str | None) -> str | None:
    """The address of a cluster: the given one, else that of the environment;
    None where neither names one.
    """
    return given or next((os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)), None)


class JobServer:
    """A connection to the job server at `address` (http://HOST:8265, or what
    `ray.init` takes, inside the cluster).

    Raises Unreachable when nothing answers, UserError when what answers is no Ray, too old,
    or wants a token.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address_of(address) or DEFAULT_ADDRESS
        if self.address.startswith("ray://"):
            raise UserError(
                f"{self.address} is an address of Ray Client; give that of the dashboard, http://HOST:8265"
            )
        if (
            self.address != "auto"
            and "://" not in self.address
            and self.address.rpartition(":")[2] == "8265"
        ):
            self.address = f"http://{self.address}"
        self.shown = masked(self.address)
        _listens(self.address)
        if self.address.startswith("http"):
            self.address = self.address.rstrip("/")
            self.ray_version = _probe(self.address)
        with self._explained("reach"):
            from ray.job_submission import JobSubmissionClient

            logging.getLogger("ray").setLevel(logging.WARNING)
            for name in ("dashboard_sdk", "job.sdk"):  # which set their own levels
                logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
            with _only_address(self.address):
                self._client = JobSubmissionClient(self.address, headers=_token_headers())
        if not self.address.startswith("http"):
            self.ray_version = _probe(self._client.get_address())

    def submit(self, job: Job, job_id: str) -> None:
        """Hands a job over. Raises UserError when the id was used before or the job holds a secret."""
        check_secrets(job)
        with self._explained(f"submit {job_id!r} to"):
            self._client.submit_job(
                entrypoint=entrypoint(job.command),
                submission_id=job_id,
                runtime_env=_with_variables(
                    job.runtime_env, {JOB_VARIABLE: job_id, "PYTHONUNBUFFERED": "1"}
                ),
                metadata={
                    "command": shlex.join(job.command),
                    "cpus": f"{job.cpus:g}",
                    "gpus": f"{job.gpus:g}",
                },
                entrypoint_num_cpus=job.cpus or None,
                entrypoint_num_gpus=job.gpus or None,
            )

    def look(self, job_id: str) -> JobState | None:
        """The state of a job; None when the cluster knows no such job."""
        with suppress(_NotFound), self._explained("ask"):
            return _state(self._client.get_job_info(job_id))
        return None

    def state(self, job_id: str) -> JobState:
        """The state of a job. Raises UserError that lists the known ones when there is no such job."""
        state = self.look(job_id)
        if state is None:
            known = [job.id for job in self.jobs()]
            there = ", ".join(known[:10]) or "none"
            raise UserError(f"no job {job_id!r} at {self.shown}{nearest(job_id, known)} (there: {there})")
        return state

    def jobs(self) -> list[JobState]:
        """All jobs that were submitted to the cluster, the newest first."""
        with self._explained("ask"):
            found = [_state(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: -(job.started or 0.0))

    def stop(self, job_id: str) -> bool:
        """Asks a job to end: SIGTERM, and SIGKILL some seconds later. False when it had ended before.

        A job that waits for resources ends as soon as it starts; Ray cannot end it before.
        """
        with self._explained("ask"):
            return bool(self._client.stop_job(job_id))

    def logs(self, job_id: str) -> str:
        """All that the job printed so far."""
        with self._explained("ask"):
            return str(self._client.get_job_logs(job_id) or "")

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        """What the job prints, from its beginning, in pieces as they come;
        ends with the job, or when the line breaks.
        """
        import aiohttp

        pieces = self._client.tail_job_logs(job_id)
        while True:
            try:
                piece = await anext(pieces)
            except (StopAsyncIteration, RuntimeError, aiohttp.ClientError, OSError):
                return
            yield piece

    def inherited_env(self) -> dict[str, Any] | None:
        """Within a job that was submitted from here: its runtime environment, working tree included;
        else None.
        """
        parent = os.environ.get(JOB_VARIABLE)
        if not parent:
            return None
        with self._explained("ask"):
            return dict(self._client.get_job_info(parent).runtime_env or {})

    def why_pending(self, state: JobState) -> str:
        """In words, why a job has not started yet."""
        wants = [
            f"{amount:g} {name}" for name, amount in (("CPU", state.cpus), ("GPU", state.gpus)) if amount
        ]
        if not wants:
            return "its environment is being set up"
        totals = self._totals()
        has = ", ".join(f"{totals.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
        return f"it waits for {' and '.join(wants)} of one node" + (
            f"; the cluster has {has} in all" if totals else ""
        )

    def _totals(self) -> dict[str, float]:
        from ray.util.state import list_nodes

        totals: dict[str, float] = {}
        try:
            nodes = list_nodes(address=self._client.get_address(), filters=[("state", "=", "ALIVE")])
        except Exception:  # only an explanation depends on it
            return {}
        for node in nodes:
            for name in ("CPU", "GPU"):
                totals[name] = totals.get(name, 0.0) + float((node.resources_total or {}).get(name, 0.0))
        return totals

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        """Turns the client's exceptions into one line."""
        import ray.exceptions
        import requests

        try:
            yield
        except (
            requests.exceptions.ConnectionError,
            requests.exceptions.Timeout,
            ConnectionError,
            ray.exceptions.RpcError,
        ) as error:
            raise Unreachable(
                f"cannot {action} the Ray cluster at {self.shown}: it does not answer"
            ) from error
        except ray.exceptions.AuthenticationError as error:
            raise UserError(_token_wanted(self.shown)) from error
        except (RuntimeError, ValueError, TypeError, requests.exceptions.RequestException) as error:
            text = str(error)
            if "status code 404" in text and "does not exist" in text:
                raise _NotFound(text) from error
            if "already exists" in text:
                raise AlreadyThere(
                    f"cannot {action} the Ray cluster at {self.shown}: that id was used before"
                ) from error
            reason = next(
                (line.strip() for line in reversed(text.splitlines()) if line.strip(" .\n")),
                type(error).__name__,
            )
            raise UserError(f"cannot {action} the Ray cluster at {self.shown}: {masked(reason)}") from error


class _NotFound(UserError):
    """The cluster knows no such job."""


class AlreadyThere(UserError):
    """A job of this id was submitted before."""


def _listens(address: str) -> None:
    """Raises Unreachable when nothing listens at host:port: Ray's own client would try for 45 seconds."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port or {"https": 443}.get(parts.scheme, 80)
    except ValueError:
        host = None
    if address == "auto":
        return
    if not host:
        raise UserError(
            f"{masked(address)} is not the address of a Ray dashboard, which looks like {DEFAULT_ADDRESS}"
        )
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else str(error.strerror or error).lower()
        raise Unreachable(
            f"no Ray cluster at {masked(address)} ({reason}); name its dashboard by --address or "
            "RAY_API_SERVER_ADDRESS (from outside, after: ssh -L 8265:127.0.0.1:8265 HEAD, or kubectl "
            "port-forward service/HEAD-svc 8265)"
        ) from error


def _probe(address: str) -> str:
    """Ray's version at a dashboard's address, asked with a time-out, which Ray's client does not have."""
    import requests

    shown = masked(address)
    try:
        answer = requests.get(f"{address}/api/version", timeout=CONNECT_SECONDS)
    except requests.exceptions.RequestException as error:
        raise UserError(
            f"what answers at {shown} is not a Ray dashboard ({type(error).__name__})"
        ) from error
    if answer.status_code in (401, 403):
        return "unknown"  # the client has the words, and perhaps the token
    try:
        version = str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"what answers at {shown} is not a Ray dashboard (HTTP {answer.status_code})"
        ) from error
    if version.split(".")[0] in ("0", "1"):
        from cluster.training.ray_private import KNOWN_VERSIONS

        raise UserError(
            f"the cluster at {shown} runs Ray {version}; Fovea needs a Ray{KNOWN_VERSIONS} there"
        )
    return version


def _token_headers() -> dict[str, str]:
    """The token that the environment names now: Ray's own client keeps the one it
    knew when this process first met Ray.
    """
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return {}
    token, path = os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not token and path:
        with suppress(OSError):  # Ray says then that there is none
            token = Path(path).expanduser().read_text().strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _token_wanted(shown: str) -> str:
    return (
        f"the Ray cluster at {shown} wants a token, and the one given is missing or wrong: set "
        "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (a file) or RAY_AUTH_TOKEN"
    )


def _state(details: Any) -> JobState:
    status = str(getattr(details.status, "value", details.status))
    metadata = details.metadata or {}
    return JobState(
        id=details.submission_id or details.job_id,
        status=status,
        command=metadata.get("command") or details.entrypoint,
        message=details.message or "",
        driver_exit_code=details.driver_exit_code,
        started=None if details.start_time is None else details.start_time / 1000,
        ended=None if details.end_time is None else details.end_time / 1000,
        cpus=float(metadata.get("cpus", 0)),
        gpus=float(metadata.get("gpus", 0)),
    )


def _with_variables(runtime_env: Mapping[str, Any], variables: dict[str, str]) -> dict[str, Any]:
    return {**runtime_env, "env_vars": {**runtime_env.get("env_vars", {}), **variables}}


@contextmanager
def _only_address(address: str) -> Iterator[None]:
    """Ray's client prefers the environment to the address it is given; here the given one counts."""
    former = {name: os.environ.pop(name, None) for name in ADDRESS_VARIABLES}
    os.environ[ADDRESS_VARIABLES[0]] = address
    try:
        yield
    finally:
        for name, value in former.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
