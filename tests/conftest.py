"""What tests share: one local Ray, started by the first test that needs it, and one S3 server."""

from __future__ import annotations

import os

# Ray reads these when it is imported, so they come before everything else
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.process import set_up_process

set_up_process()  # before torch: on a busy machine threads that spin are ten times slower

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell starts what it runs in the background so,
    # and the commands that tests interrupt would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


# files of tests that take long and start no Ray
LONG = {
    "test_distill",
    "test_methods",
    "test_started_weights",
    "test_unfinished_runs",
    "test_signals",
    "test_summarization_run",
}


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """A local Ray with four CPUs that all tests of a session share; `run_workers` joins it."""
    import ray

    from cluster.training.ray_private import start_ray

    folder = tempfile.mkdtemp(prefix="fovea-test-", dir="/tmp")
    start_ray(
        Path(folder),
        num_cpus=4,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class S3Server:
    """An S3 server on this machine with one empty bucket."""

    endpoint: str
    bucket: str

    @property
    def url(self) -> str:
        """The bucket's URL."""
        return f"s3://{self.bucket}"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A moto server; environment variables lead every s3fs of this process and of its children to it."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    variables = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    former = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    s3fs.S3FileSystem.clear_instance_cache()  # one made before would ask the real service
    boto3.client("s3").create_bucket(Bucket="fovea-test")
    yield S3Server(endpoint=variables["AWS_ENDPOINT_URL"], bucket="fovea-test")
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()
    for name, value in former.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start Ray or processes come first:
    others compute while these wait, and none is left for the end.
    """
    heavy = {item.path for item in items if item.get_closest_marker("ray") or item.path.stem in LONG}
    items.sort(key=lambda item: item.path not in heavy)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks of tests are so small that two threads mostly wait for each other,
    above all on a busy machine.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
