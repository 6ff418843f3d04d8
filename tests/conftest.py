"""What tests share: one local Ray, there while tests need it, and one S3 server."""

from __future__ import annotations

import os

# Ray reads these when it is imported, so they come before everything else
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
# a process for each run; tests give notice themselves
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.process import set_up_process

set_up_process()  # before torch: on a busy machine threads that spin are ten times slower

# a shell starts what it runs in the background with SIGINT ignored, nohup with SIGHUP,
# and the commands that tests interrupt would inherit it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


FILES_WITH_RAY = pytest.StashKey[set[Path]]()

# files of tests that take long and start no Ray
LONG = {
    "test_distill",
    "test_methods",
    "test_started_weights",
    "test_unfinished_runs",
    "test_signals",
    "test_summarization_run",
}


class SharedRay:
    """A local Ray with four CPUs for the tests of a session, which `run_workers` joins. It is there from the
    first test that asks for it to the first of a file without such tests: idle, its processes take a tenth
    of a core. Files that start Ray come first, so one is mostly enough.
    """

    def __init__(self) -> None:
        self.folder: str | None = None

    def start(self) -> None:
        """Nothing happens where it is there."""
        if self.folder is not None:
            return
        from cluster.training import ray_private

        self.folder = tempfile.mkdtemp(prefix="fovea-test-", dir="/tmp")
        ray_private.start_ray(
            Path(self.folder),
            num_cpus=4,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
        )
        # runs that join a Ray have a keeper of placement groups, a process of four seconds
        ray_private.LeanTrainer.idle = ray_private.LeanPrivateTrainer.idle

    def end(self) -> None:
        """Nothing happens where there is none."""
        if self.folder is None:
            return
        import ray

        ray.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder = None


SHARED_RAY = SharedRay()


@pytest.fixture
def shared_ray() -> None:
    """The session's local Ray is there."""
    SHARED_RAY.start()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ends the session's Ray where a file without tests that use it begins."""
    if item.path not in item.session.stash[FILES_WITH_RAY]:
        SHARED_RAY.end()


def pytest_sessionfinish() -> None:
    """Ends what tests shared."""
    SHARED_RAY.end()


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


@pytest.hookimpl(trylast=True)  # after what is not asked for has gone
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Files that use the session's Ray come first, then those that start processes or another Ray:
    others compute while these wait, and none is left for the end.
    """
    with_ray = {item.path for item in items if "shared_ray" in fixtures_of(item)}
    heavy = {item.path for item in items if item.get_closest_marker("ray") or item.path.stem in LONG}
    session.stash[FILES_WITH_RAY] = with_ray
    items.sort(key=lambda item: (item.path not in with_ray, item.path not in heavy))


def fixtures_of(item: pytest.Item) -> Sequence[str]:
    """The names of all fixtures that a test uses."""
    return item.fixturenames if isinstance(item, pytest.Function) else ()


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
