"""Signals end a command as Ctrl-C does, and the same command completes what was interrupted."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cluster.errors import run_command
from pretrain.__main__ import main
from pretrain.training import launch
from tests.pretrain.runs import arguments, assert_equal_runs, start, wait_for_step
from tests.pretrain.shards import photo, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("photos"), [photo(number, side=32) for number in range(48)])


WAITS = """
import pathlib, sys, time
from cluster.errors import run_command
from cluster import storage
def main():
    with storage._renamed_when_complete(pathlib.Path(sys.argv[1])) as temporary:
        temporary.write_text("half")
        print("ready", flush=True)
        time.sleep(60)
sys.exit(run_command(main))
"""


def _hears_hang_ups():
    signal.signal(
        signal.SIGHUP, signal.SIG_DFL
    )  # tests that run under nohup would hand on that they are ignored


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_nothing_half_written_stays(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, str(tmp_path / "file")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hears_hang_ups,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and error == "interrupted\n"
    assert os.listdir(tmp_path) == []


def test_a_hang_up_that_is_ignored_stays_so(tmp_path):
    process = subprocess.Popen(
        ["nohup", sys.executable, "-c", WAITS.replace("60", "3"), str(tmp_path / "file")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0 and (tmp_path / "file").read_text() == "half"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_closed_terminal_costs_no_step(shards, tmp_path, number):
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert run_command(lambda: main(arguments(shards, whole, steps=12, workers=0))) == 0
    process = start(*arguments(shards, out, steps=12, workers=0))
    wait_for_step(process, out, 3)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert json.loads((out / "result.json").read_text())["status"] == "interrupted"
    assert run_command(lambda: main(arguments(shards, out, steps=12, workers=0))) == 0
    assert_equal_runs(whole, out)


def test_a_report_that_was_interrupted_is_written_by_the_same_command(shards, tmp_path, monkeypatch, capsys):
    def interrupted(report, out):
        raise KeyboardInterrupt

    command = arguments(shards, tmp_path / "run", steps=2, workers=0, rankme_images=0)
    monkeypatch.setattr(launch, "write_report", interrupted)
    assert run_command(lambda: main(command)) == 130
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished"
    monkeypatch.undo()
    assert run_command(lambda: main(command)) == 0
    assert "its report was missing and is written now" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").exists()
    assert run_command(lambda: main(command)) == 0
    assert "report was missing" not in capsys.readouterr().out


def test_two_commands_with_one_out(shards, tmp_path, capsys):
    out = tmp_path / "run"
    first = start(*arguments(shards, out, steps=100_000, workers=0, rankme_images=0))
    wait_for_step(first, out, 1)
    try:
        for steps, told in ((100_000, f"is in use: process {first.pid} on"), (7, "is in use")):
            options = arguments(shards, out, steps=steps, workers=0, rankme_images=0)
            assert run_command(lambda options=options: main(options)) == 2
            assert told in capsys.readouterr().err
        steps = len((out / "metrics.jsonl").read_text().splitlines())
        deadline = time.monotonic() + 60
        while len((out / "metrics.jsonl").read_text().splitlines()) <= steps:
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        first.kill()
        first.wait()
    # who was killed holds nothing
    third = start(*arguments(shards, out, steps=100_000, workers=0, rankme_images=0))
    wait_for_step(third, out, 1)
    third.kill()
    third.wait()
