"""What a command prints and returns for each kind of end."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from cluster.errors import RunStopped, UserError, WorkerFailed, choose, nearest, run_command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such bucket"), 2, "error: no such bucket\n"),
        (RunStopped("collapsed"), 3, "stopped: collapsed\n"),
        (
            WorkerFailed("worker 1 of 2 failed\nTraceback ..."),
            1,
            "error: worker 1 of 2 failed\nTraceback ...\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_ends_of_a_command(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise error

    assert run_command(main) == code
    assert capsys.readouterr() == ("", line)


def test_a_return_value_is_the_exit_code_and_none_is_success() -> None:
    assert run_command(lambda: 7) == 7
    assert run_command(lambda: None) == 0


def test_our_own_faults_keep_their_traceback() -> None:
    def main() -> int:
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError):
        run_command(main)


def test_a_closed_pipe_ends_a_command_without_noise() -> None:
    code = (
        "from cluster.errors import run_command\nimport sys\n"
        "def main():\n  for i in range(100000): print(i)\n"
        "sys.exit(run_command(main))"
    )
    command = f"{sys.executable} -c '{code}' | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "0\n"
    assert done.stderr == ""


def test_unknown_names_are_told_with_the_nearest_and_all_known() -> None:
    assert choose("method", "dino", ["simclr", "dino"]) == "dino"
    with pytest.raises(
        UserError, match=r"unknown method 'simcrl'; did you mean 'simclr'\? \(known: dino, simclr\)"
    ):
        choose("method", "simcrl", ["simclr", "dino"])
    assert nearest("zzz", ["simclr"]) == ""


LEAVING = """
import atexit, os, signal, sys
from cluster.errors import run_process
signals = [int(word) for word in sys.argv[1:]]
class Late:
    def __del__(self):  # when modules are torn down
        os.kill(os.getpid(), signals[0])
def main():
    print("done", flush=True)
    if signals.pop() == 0:
        globals()["late"] = Late()
    else:
        atexit.register(lambda: [os.kill(os.getpid(), number) for number in signals])
run_process(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_after_the_work_is_done_changes_nothing_and_a_second_ends_the_process(number):
    for times, when, code in ((1, 0, 0), (1, 1, 0), (2, 1, -number)):
        words = [sys.executable, "-c", LEAVING, *[str(int(number))] * times, str(when)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (code, "done\n", ""), times


SWALLOWED = """
import os, signal, sys
from cluster.errors import run_command
def main():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        signal.pause()
    except KeyboardInterrupt:
        raise AttributeError("partially initialized module")
sys.exit(run_command(main))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_that_comes_out_as_another_exception_is_one(number):
    words = [sys.executable, "-c", SWALLOWED, str(int(number))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
