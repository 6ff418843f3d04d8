"""Real Ray workers. They share one local Ray, except where the private one is what is tested."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UserError, WorkerFailed
from cluster.training.ray_guard import processes_of
from cluster.training.workers import Workers, run_workers
from tests.cluster import jobs

pytestmark = pytest.mark.ray


@pytest.fixture
def two_workers(shared_ray: None, tmp_path: Path) -> dict[str, Any]:
    return {"num_workers": 2, "storage_url": str(tmp_path)}


def test_result_records_and_place(two_workers: dict[str, Any]) -> None:
    records: list[dict[str, Any]] = []
    result = run_workers(
        jobs.count,
        jobs.Numbers(count=50),
        Workers(cpus_per_worker=2, **two_workers),
        on_record=records.append,
    )
    assert result["total"].item() == 3.0
    assert records == [{"i": i, "rank": 0, "pair": [1, 2]} for i in range(50)]
    assert (result["rank"], result["world_size"], result["device"]) == (0, 2, "cpu")
    assert result["num_threads"] == 2
    assert result["folder"] == os.getcwd()
    assert (result["attempt"], result["restarts"]) == (0, ())


def test_ctrl_c_reaches_every_rank_and_the_result_comes_back(two_workers: dict[str, Any]) -> None:
    former = signal.getsignal(signal.SIGINT)
    result = run_workers(
        jobs.wait_for_stop,
        jobs.Numbers(),
        Workers(**two_workers),
        on_record=lambda record: os.kill(os.getpid(), signal.SIGINT),
    )
    assert result == [True, True]
    assert signal.getsignal(signal.SIGINT) is former


@pytest.mark.slow
def test_a_users_mistake_crosses_at_once_and_as_it_was(two_workers: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        run_workers(jobs.refuse, jobs.Numbers(), Workers(**two_workers))
    assert type(caught.value) is UserError
    assert str(caught.value) == jobs.Numbers().text


@pytest.mark.slow
def test_a_stop_by_rule_keeps_its_class_and_the_last_record(two_workers: dict[str, Any]) -> None:
    records: list[dict[str, Any]] = []
    with pytest.raises(jobs.Collapsed, match="the features are all the same"):
        run_workers(
            jobs.collapse,
            jobs.Numbers(),
            Workers(**(two_workers | {"num_workers": 1})),
            on_record=records.append,
        )
    assert records == [{"last": "words"}]


@pytest.mark.slow
def test_a_bug_is_told_once_and_whole(two_workers: dict[str, Any]) -> None:
    with pytest.raises(WorkerFailed) as caught:
        run_workers(jobs.fail, jobs.Numbers(), Workers(max_failures=0, **two_workers))
    lines = str(caught.value).splitlines()
    assert lines[0] == "worker 1 of 2 failed"
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == f"KeyError: {jobs.Numbers().text!r}"
    assert str(caught.value).count("Traceback") == 1
    assert str(caught.value).count("KeyError") == 1
    assert "ray" not in str(caught.value).replace("traceback", "")


@pytest.mark.slow
def test_a_killed_worker_is_replaced(two_workers: dict[str, Any]) -> None:
    records: list[dict[str, Any]] = []
    attempt, restarts = run_workers(
        jobs.lose_a_worker, jobs.Numbers(), Workers(**two_workers), on_record=records.append
    )
    assert attempt == 1
    assert restarts == ("worker 1: its process died (killed, crashed, or out of memory)",)
    assert records == [{"attempt": 0}, {"attempt": 1}]


@pytest.mark.slow
def test_a_console_that_fails_does_not_end_the_run_but_is_seen(
    two_workers: dict[str, Any], tmp_path: Path
) -> None:
    def fail(record: dict[str, Any]) -> None:
        raise OSError("console gone")

    with pytest.raises(OSError, match="console gone"):
        run_workers(
            jobs.count, jobs.Numbers(), Workers(**(two_workers | {"num_workers": 1})), on_record=fail
        )
    assert list(tmp_path.iterdir()) == []  # Ray's notes do not stay in the run's folder


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"cpus_per_worker": 3}, r"want 6 CPU, the Ray cluster has 4"),
        ({"gpus_per_worker": 1, "num_workers": 1000}, r"want 1000 GPU, the Ray cluster has \d"),
        ({"cpus_per_worker": 0.0}, r"cpus_per_worker=0.0 is not possible"),
        ({"num_workers": -1}, r"num_workers=-1 is not possible"),
        ({"max_failures": -2}, r"max_failures=-2 is not possible"),
    ],
)
def test_what_can_never_start_is_refused(
    two_workers: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_workers(
            jobs.count, jobs.Numbers(), Workers(**(two_workers | {"cpus_per_worker": 0.001} | asked))
        )


@pytest.mark.slow
def test_a_preempted_run_stops_and_continues_without_spending_failures(two_workers: dict[str, Any]) -> None:
    alone = two_workers | {"num_workers": 1, "max_failures": 0}
    assert run_workers(jobs.be_preempted, jobs.Numbers(), Workers(**alone)) == (1, True)


@pytest.mark.slow
def test_a_lost_controller_is_replaced(two_workers: dict[str, Any]) -> None:
    alone = two_workers | {"num_workers": 1, "max_failures": 1}
    attempt, restarts = run_workers(jobs.lose_the_controller, jobs.Numbers(), Workers(**alone))
    assert attempt == 1
    assert restarts[0].startswith("Ray's controller: ")


class Command:
    """A command with a private Ray, as a user starts it:
    in a terminal of its own, without this process's settings.
    """

    def __init__(self, function: str, folder: Path) -> None:
        hidden = ("RAY_", "OMP_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        (folder / "home").mkdir()
        environment |= {"HOME": str(folder / "home"), "TMPDIR": str(folder), "PYTHONPATH": os.getcwd()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.jobs", function, str(folder / "out")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,  # its process group gets Ctrl-C like a terminal's
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout

    def wait_for(self, text: str) -> None:
        for line in self.output:
            if text in line:
                return
        raise AssertionError(f"it ended with {self.process.wait()} and never said {text}")


def _ray_folders() -> set[Path]:
    return set(Path("/tmp").glob("fovea-ray-*"))


@pytest.mark.slow
def test_a_private_ray_is_silent_and_leaves_nothing(tmp_path: Path) -> None:
    before = _ray_folders()
    command = Command("lose_a_worker", tmp_path)
    lines = command.output.read().splitlines()
    assert command.process.wait() == 0
    reason = "worker 1: its process died (killed, crashed, or out of memory)"
    assert lines == [
        f"driver {command.process.pid}",
        "{'attempt': 0}",
        "{'attempt': 1}",
        f"result (1, ({reason!r},))",
    ]
    assert _ray_folders() <= before
    assert [path for path in (tmp_path / "home").rglob("*") if "ray" in path.name] == []


@pytest.mark.slow
def test_a_stop_by_rule_ends_a_command_with_one_line(tmp_path: Path) -> None:
    command = Command("collapse", tmp_path)
    lines = command.output.read().splitlines()
    assert command.process.wait() == 3
    assert lines[1:] == ["{'last': 'words'}", "stopped: the features are all the same"]


@pytest.mark.slow
def test_the_second_ctrl_c_ends_a_run_that_does_not_listen(tmp_path: Path) -> None:
    before = _ray_folders()
    command = Command("hang", tmp_path)
    command.wait_for("ready")
    os.killpg(command.process.pid, signal.SIGINT)
    command.wait_for("press Ctrl-C again")
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.output.read() == "interrupted\n"
    assert command.process.wait() == 130
    assert _ray_folders() <= before


@pytest.mark.slow
def test_a_killed_driver_takes_its_ray_with_it(tmp_path: Path) -> None:
    before = _ray_folders()
    command = Command("hang", tmp_path)
    command.wait_for("ready")
    (folder,) = _ray_folders() - before
    assert len(processes_of(str(folder), spared=command.process.pid)) >= 4
    command.process.kill()
    deadline = time.monotonic() + 20
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not folder.exists()
    assert processes_of(str(folder), spared=command.process.pid) == []


@pytest.mark.slow
@pytest.mark.ray
def test_a_private_ray_lets_nobody_in_and_leaves_no_token(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    environment = {**clean, "HOME": str(tmp_path / "home"), "RAY_USAGE_STATS_ENABLED": "0"}
    (tmp_path / "home").mkdir()
    command = [sys.executable, "-m", "tests.cluster.outsider", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    mode, code, text = done.stdout.split(" ", 2)
    assert mode == "token"
    assert code != "0"
    assert "inside" not in text
    assert "uthentication" in text
    assert not (tmp_path / "home/.ray").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_whatever_listens_gives_strangers_nothing():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    command = [sys.executable, "-m", "tests.benchmarks.listening"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout.splitlines()
    assert sum("gcs_server" in line and "UNAUTHENTICATED" in line for line in told) == 1  # it does look
    # the process group's, whose members know each other without a token
    assert all("127.0.0.1" in line for line in told if "DEADLINE_EXCEEDED" in line)
