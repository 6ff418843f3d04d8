"""`python -m cluster submit | status | logs | stop | list` on a real Ray
head that this test session starts.
"""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from cluster.jobs.job import PENDING, RUNNING, STOPPED
from cluster.jobs.job_server import JobServer

pytestmark = pytest.mark.ray

HELLO = (
    'import os, sys; print("hello from", os.path.exists("cluster/jobs/job.py")); print("bye"); '
    "sys.exit(int(sys.argv[1]))"
)


@pytest.fixture
def run(head):
    """Runs `python -m cluster ...` as a user would."""

    def run(*words, **variables):
        environment = {**os.environ, **head.environment, **variables}
        command = [sys.executable, "-m", "cluster", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)

    return run


@pytest.fixture
def server(head, monkeypatch):
    for name, value in head.environment.items():
        monkeypatch.setenv(name, value)
    return JobServer()


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def job_id(text):
    return re.search(r"submitted (\S+) to", text)[1]


def test_a_job_is_followed_and_its_exit_code_returned(run):
    done = run("submit", "--name", "hello", "--", "python", "-c", HELLO, "0")
    assert done.returncode == 0, done.stderr
    assert "hello from True" in done.stdout  # the working tree came along
    assert "Running entrypoint" not in done.stdout
    name = job_id(done.stdout)
    assert name.startswith("hello-")
    assert f"{name} is done" in done.stdout

    failed = run("submit", "--", "python", "-c", HELLO, "7")
    assert failed.returncode == 7
    assert failed.stdout.count("bye") == 1
    assert failed.stderr.strip().endswith("with exit code 7")

    how = run("status", job_id(failed.stdout))
    assert "failed" in how.stdout
    assert "exit code 7" in how.stdout
    assert "  bye\n" in how.stdout  # its last lines
    assert run("logs", name).stdout == "hello from True\nbye\n"
    listed = run("list").stdout.splitlines()
    assert re.match(rf"{name} +succeeded ", next(line for line in listed if line.startswith(name)))


def test_ctrl_c_detaches_and_stop_ends_the_job(run, server, head):
    command = [sys.executable, "-m", "cluster", "submit", "--", "python", "-c"]
    program = "import time\nfor i in range(1000): print('step', i, flush=True); time.sleep(0.1)"
    follower = subprocess.Popen(
        [*command, program], env={**os.environ, **head.environment}, stdout=subprocess.PIPE, text=True
    )
    text = ""
    while "step 3" not in text:
        line = follower.stdout.readline()
        assert line, text  # the follower has ended
        text += line
    follower.send_signal(signal.SIGINT)
    text += follower.communicate(timeout=20)[0]
    name = job_id(text)
    assert follower.returncode == 130
    assert f"detached; {name} keeps running" in text
    assert f"python -m cluster logs -f {name}" in text
    assert server.state(name).status == RUNNING

    stopped = run("stop", name)
    assert f"{name} was stopped" in stopped.stdout
    assert server.state(name).status == STOPPED
    assert run("stop", name).stdout.startswith("nothing to stop")
    assert run("logs", "-f", name).returncode == 130


def test_a_job_without_room_is_said_to_wait_and_can_be_stopped(run, server):
    waiting = run("submit", "--detach", "--gpus", "3", "--", "python", "-c", "print(1)")
    name = job_id(waiting.stdout)
    wait_for(lambda: server.state(name).status == PENDING)
    assert (
        f"{name} has not started: it waits for 3 GPU of one node; the cluster has 2 CPU, 0 GPU in all"
        in (run("status", name).stdout)
    )
    assert "as soon as it would start" in run("stop", name).stdout


@pytest.mark.parametrize(
    ("words", "variables", "expected"),
    [
        (["status", "hell"], {}, "no job 'hell'"),
        (
            ["list", "--address", "http://127.0.0.1:9"],
            {},
            "no Ray cluster at http://127.0.0.1:9 (connection refused)",
        ),
        (["list"], {"RAY_AUTH_TOKEN": "0" * 64}, "wants a token, and the one given is missing or wrong"),
        (["list"], {"RAY_AUTH_MODE": "disabled"}, "wants a token"),
        (["list", "--address", "ray://127.0.0.1:10001"], {}, "address of Ray Client"),
        (["submit", "--", "python", "-m", "pretrain", "out=runs/x"], {}, "vanish with it"),
        (
            ["submit", "--", "python", "-m", "pretrain", "data.storage_options.key=abcdef"],
            {},
            "holds a secret",
        ),
        (["submit"], {}, "no command"),
        (["submit", "--name", "a b", "--", "true"], {}, "--name 'a b' is not possible"),
    ],
)
def test_mistakes_are_one_line(run, words, variables, expected):
    done = run(*words, **variables)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
