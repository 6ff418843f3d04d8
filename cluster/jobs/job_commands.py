"""The commands about single jobs: submit, status, logs, stop, list."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.durations import duration
from cluster.errors import EXIT_INTERRUPTED, UserError, printable
from cluster.jobs import working_tree
from cluster.jobs.following import NUM_LAST_LINES, Terminal, clean, ending, follow, last_lines
from cluster.jobs.job import FAILED, PENDING, Job, check_secrets, new_id
from cluster.jobs.job_server import JobServer
from cluster.secrets import masked


def submit(options: argparse.Namespace) -> int:
    """Sends the working tree and a command, and follows; returns the job's exit code."""
    if options.list_files:
        files = working_tree.files_of(Path.cwd())
        print("\n".join(file.name for file in files))
        print(working_tree.describe(files))
        return 0
    job = Job(options.words, options.cpus, options.gpus, _runtime_env(options.runtime_env))
    _check_words(job.command)
    check_secrets(job)

    server = JobServer(options.address)
    _compare_versions(server)
    job_id = new_id(_name(options.name, job.command))
    with working_tree.packed(Path.cwd()) as tree:
        server.submit(Job(job.command, job.cpus, job.gpus, {**job.runtime_env, "working_dir": tree}), job_id)
    print(f"submitted {job_id} to {server.shown}", flush=True)
    if options.detach:
        print(_come_back(job_id, options.address))
        return 0
    return _follow(server, job_id, options.address)


def _follow(server: JobServer, job_id: str, address: str | None) -> int:
    try:
        with Terminal() as terminal:
            state = follow(server, job_id, terminal.show)
    except KeyboardInterrupt:
        print(f"\ndetached; {job_id} keeps running. {_come_back(job_id, address)}")
        return EXIT_INTERRUPTED
    except BaseException:
        print(f"no longer following; {job_id} may go on. {_come_back(job_id, address)}", file=sys.stderr)
        raise
    print(ending(state), file=sys.stderr if state.exit_code else sys.stdout)
    return state.exit_code


def status(options: argparse.Namespace) -> int:
    """Says the state of a job."""
    server = JobServer(options.address)
    state = server.state(options.job)
    if state.over:
        print(ending(state))
    elif state.status == PENDING:
        print(f"{state.id} has not started: {server.why_pending(state)}")
    else:
        since = f" for {duration(time.time() - state.started)}" if state.started else ""
        print(f"{state.id} is running{since}")
    print(f"command: {_line(state.command)}")
    if state.status != PENDING:
        count = NUM_LAST_LINES if state.status == FAILED else 5
        print("".join(f"  {line}\n" for line in last_lines(server, state.id, count)), end="")
    return 0


def logs(options: argparse.Namespace) -> int:
    """Prints what a job printed, or follows it; then its exit code is returned."""
    server = JobServer(options.address)
    server.state(options.job)
    if options.follow:
        return _follow(server, options.job, options.address)
    print("".join(f"{line}\n" for line in clean(server.logs(options.job))), end="")
    return 0


def stop(options: argparse.Namespace) -> int:
    """Ends a job."""
    server = JobServer(options.address)
    state = server.state(options.job)
    if state.over:
        print(f"nothing to stop: {ending(state)}")
        return 0
    server.stop(state.id)
    if state.status == PENDING:
        print(
            f"{state.id} has not started; Ray ends it as soon as it would start, and keeps it in the list "
            "until then"
        )
        return 0
    for _ in range(40):
        state = server.state(state.id)
        if state.over:
            break
        time.sleep(0.5)
    print(ending(state) if state.over else f"{state.id} was asked to stop and has not ended yet")
    return 0


def list_jobs(options: argparse.Namespace) -> int:
    """Lists the jobs."""
    server = JobServer(options.address)
    jobs = server.jobs()
    if not jobs:
        print(f"no jobs at {server.shown}")
    width = max((len(job.id) for job in jobs), default=0)
    for job in jobs:
        begun = time.strftime("%m-%d %H:%M", time.localtime(job.started)) if job.started else ""
        print(f"{job.id:{width}}  {job.status.lower():9}  {begun:11}  {_line(job.command)}")
    return 0


def _check_words(command: Sequence[str]) -> None:
    """Raises UserError for what would be lost with the job's copy of the working tree."""
    for word in command:
        key, equals, value = word.partition("=")
        if equals and key == "out" and "://" not in value and not os.path.isabs(os.path.expanduser(value)):
            raise UserError(
                f"{word}: on the cluster this would lie in the job's copy of the working tree and vanish "
                "with it; give an absolute path on a file system that all nodes share, or a URL "
                "(s3://bucket/run)"
            )


def _runtime_env(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        read = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--runtime-env {path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(read, dict):
        raise UserError(f"--runtime-env {path} must hold `key: value` lines")
    if "working_dir" in read:
        raise UserError(f"--runtime-env {path} names a working_dir, but the working tree is what is sent")
    return read


def _compare_versions(server: JobServer) -> None:
    import ray

    there, here = server.ray_version, ray.__version__
    if there != "unknown" and there.split(".")[:2] != here.split(".")[:2]:
        print(
            f"note: the cluster runs Ray {there}, this environment has {here}; the job uses the cluster's",
            flush=True,
        )


def _name(given: str | None, command: Sequence[str]) -> str:
    if given is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,80}", given):
        raise UserError(f"--name {given!r} is not possible: letters, digits, dots, dashes and underscores")
    module = (
        list(command)[list(command).index("-m") + 1]
        if "-m" in command[:-1]
        else Path(command[0]).name
        if command
        else ""
    )
    return given or re.sub(r"[^\w.-]+", "-", module)[:40].strip("-.") or "job"


def _come_back(job_id: str, address: str | None) -> str:
    at = f" --address {address}" if address else ""
    return (
        f"Follow it again: python -m cluster logs -f {job_id}{at}\n"
        f"  how it is: python -m cluster status {job_id}{at}\n  end it: python -m cluster stop {job_id}{at}"
    )


def _line(text: str, limit: int = 100) -> str:

    shown = printable(masked(text))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
