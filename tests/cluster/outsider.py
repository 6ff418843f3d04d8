"""A command for the test of the private Ray's door: a worker lets a process without its token knock."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from cluster.training.rank_context import RankContext
from cluster.training.workers import Workers, run_workers

KNOCK = (
    "import ray; ray.init(address={address!r}, log_to_driver=False); print('inside', "
    "ray.cluster_resources())"
)


def knock(context: RankContext, settings: None) -> tuple[str | None, int, str]:
    """How the Ray that this worker belongs to authenticates, and what it says to an outsider."""
    import ray

    address = ray.get_runtime_context().gcs_address
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", KNOCK.format(address=address)]
    done = subprocess.run(
        command, env={**outside, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True
    )
    return os.environ.get("RAY_AUTH_MODE"), done.returncode, done.stdout + done.stderr


def main() -> None:
    """Runs the worker and prints what came."""
    found: Any = run_workers(knock, None, Workers(num_workers=1, storage_url=sys.argv[1]))
    print(*found)


if __name__ == "__main__":
    from tests.cluster import outsider  # by its importable name

    outsider.main()
