"""A real Ray head of a test's own: job server on loopback, own ports, own folder, tokens asked for."""

from __future__ import annotations

import os
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cluster.training.ray_guard import start_guard

NUM_PORTS = 9


class Head:
    """Runs from `start` to `stop`. `environment` is what a client needs to talk to it."""

    def __init__(self, num_cpus: int = 2) -> None:
        self.num_cpus = num_cpus
        self.token = secrets.token_hex(32)
        self.folder = Path(
            tempfile.mkdtemp(prefix="fj-", dir="/tmp")
        )  # a long path would break Ray's sockets
        self._guard = start_guard(self.folder)  # also when this process is killed
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # Ray gives a node 30 seconds, too few where several start on few cores
        if not any(self._is_up() for _ in range(3)):
            raise AssertionError((self.folder / "head.log").read_text())

    def _is_up(self) -> bool:
        """Starts the processes and waits for them; False where they ended."""
        base = _free_ports()
        self.address = f"http://127.0.0.1:{base}"
        self.gcs = f"127.0.0.1:{base + 1}"
        names = (
            "dashboard-port port ray-client-server-port dashboard-agent-listen-port "
            "dashboard-agent-grpc-port runtime-env-agent-port metrics-export-port node-manager-port "
            "object-manager-port"
        )
        ports = [f"--{name}={base + index}" for index, name in enumerate(names.split())]
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_enable_metrics_collection": "false",
            "PYTHONPATH": str(Path.cwd()),
        }
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            environment.pop(name, None)
        self._log = open(self.folder / "head.log", "wb")  # noqa: SIM115 - open while the head runs
        self._process = subprocess.Popen(
            [
                *(
                    str(Path(sys.executable).with_name("ray")),
                    "start",
                    "--head",
                    "--block",
                    "--disable-usage-stats",
                ),
                *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", *ports),
                *(f"--min-worker-port={base + NUM_PORTS}", f"--max-worker-port={base + 200}"),
                *(
                    f"--num-cpus={self.num_cpus}",
                    f"--object-store-memory={100 * 2**20}",
                    f"--temp-dir={self.folder}",
                ),
            ],
            env=environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 90
        # the dashboard may answer although the node is given up soon after
        while "Ray runtime started" not in (text := (self.folder / "head.log").read_text()) or (
            not self._answers()
        ):
            if self._process.poll() is not None:
                self._log.close()
                return False
            assert time.monotonic() < deadline, text
            time.sleep(0.2)
        return True

    @property
    def environment(self) -> dict[str, str]:
        """Of a client."""
        return {
            "RAY_API_SERVER_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
        }

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._log.close()
        self._guard.communicate()  # ends what is left and removes the folder

    def _answers(self) -> bool:
        # the dashboard answers before the agent that starts jobs does
        import requests

        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            return requests.get(f"{self.address}/api/jobs/", headers=headers, timeout=5).status_code == 200
        except requests.exceptions.RequestException:
            return False


def _free_ports() -> int:
    """The first of 210 ports in a row of which those that Ray is told are free;
    outside of its own workers' range.
    """
    while True:
        base = random.randrange(20000, 32000, 256)
        try:
            for port in range(base, base + NUM_PORTS):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
