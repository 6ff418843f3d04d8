"""python -m cluster pipeline FILE.yaml [key=value ...]"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import storage
from cluster.jobs import working_tree
from cluster.jobs.following import Terminal
from cluster.jobs.job_server import JobServer, address_of
from cluster.jobs.pipeline.driver import Driver
from cluster.jobs.pipeline.runners import LocalProcesses, RayJobs, Runner, Show
from cluster.jobs.pipeline.settings import STATE_FOLDER, Pipeline, load_pipeline
from cluster.lease import held


def pipeline(options: argparse.Namespace) -> int:
    """Checks the whole file, then runs what is missing. Returns the exit code."""
    plan = load_pipeline(options.file, options.settings)
    with Terminal() as terminal, _runner(plan, options.address, terminal.show) as runner:
        count = f"{len(plan.stages)} stages" if len(plan.stages) > 1 else "1 stage"
        terminal.show(
            f"{plan.name}: {count} ({', '.join(stage.name for stage in plan.stages)}), out {plan.out}"
        )
        try:
            with held(storage.join(plan.out, STATE_FOLDER, "driver.json"), plan.out):
                return Driver(plan, runner, terminal.show).run()
        finally:
            runner.close()


@contextmanager
def _runner(plan: Pipeline, address: str | None, show: Show) -> Iterator[Runner]:
    """Ray jobs where the options or the environment name a cluster, else processes of this machine."""
    if address_of(address) is None:
        out = storage.join(plan.out, STATE_FOLDER)
        if storage.is_local(out):
            yield LocalProcesses(storage.local_path(out), show)
        else:
            home = Path.home() / ".cache" / "fovea" / "pipelines" / plan.key
            yield LocalProcesses(home, show)
        return
    server = JobServer(address)
    inherited = server.inherited_env()
    if inherited is not None:  # within a job: its children get what it got
        yield RayJobs(server, inherited)
        return
    with working_tree.packed(Path.cwd()) as tree:
        yield RayJobs(server, {"working_dir": tree})
