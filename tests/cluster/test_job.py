"""Jobs in plain values: exit codes, shell lines, secrets, the lines of a log."""

import subprocess
import sys

import pytest

from cluster.errors import UserError
from cluster.jobs.following import Lines, clean, ending
from cluster.jobs.job import (
    FAILED,
    PENDING,
    RUNNING,
    STOPPED,
    SUCCEEDED,
    Job,
    JobState,
    check_secrets,
    entrypoint,
)


@pytest.mark.parametrize(
    ("status", "driver", "code", "words"),
    [
        (SUCCEEDED, 0, 0, "x is done after 5 s"),
        (SUCCEEDED, None, 0, "x is done after 5 s"),
        (FAILED, 7, 7, "x failed after 5 s with exit code 7"),
        (FAILED, 2, 2, "x failed after 5 s with exit code 2"),
        (FAILED, -9, 137, "x failed after 5 s with exit code 137 (signal 9)"),
        (FAILED, None, 1, "x failed after 5 s: the node died"),
        (FAILED, 0, 1, "x failed after 5 s: the node died"),
        (STOPPED, -15, 130, "x was stopped after 5 s"),
        (STOPPED, None, 130, "x was stopped after 5 s"),
    ],
)
def test_exit_codes(status, driver, code, words):
    state = JobState("x", status, "true", "\nthe node died\nmore", driver, started=10.0, ended=15.0)
    assert state.over
    assert state.exit_code == code
    assert ending(state) == words


@pytest.mark.parametrize("status", [PENDING, RUNNING])
def test_a_job_that_goes_on_is_not_over(status):
    assert not JobState("x", status, "true").over


def test_the_shell_line_keeps_words_signals_and_exit_code(tmp_path):
    command = [
        "python",
        "-c",
        "import os, sys; print(sys.executable, os.getppid(), sys.argv[1:]); sys.exit(7)",
    ]
    words = ["a b", "it's", "$HOME", "{c: [1, 2]}"]
    shell = subprocess.Popen(
        ["/bin/sh", "-c", entrypoint([*command, *words])], stdout=subprocess.PIPE, text=True
    )
    out, _ = shell.communicate()
    assert shell.returncode == 7
    python, parent, *_ = out.split()
    assert python == sys.executable
    assert int(parent) != shell.pid  # the shell became the program
    assert out.rstrip().endswith(str(words))
    assert entrypoint(["sleep", "a b"]) == "exec sleep 'a b'"
    with pytest.raises(UserError, match="no command"):
        entrypoint([])


@pytest.mark.parametrize(
    "word",
    [
        "data.storage_options.secret=hunter22",
        "data.storage_options={key: AKIA1234, secret: hunter22}",
        "data.url=s3://me:hunter22@host/bucket",
        "--token=hunter22",
    ],
)
def test_a_command_with_a_secret_is_refused_without_repeating_it(word):
    with pytest.raises(UserError, match="secret") as error:
        check_secrets(Job(["python", "-m", "pretrain", word]))
    assert "hunter22" not in str(error.value)


def test_a_variable_with_a_secret_is_refused_and_other_words_are_not():
    with pytest.raises(UserError, match=r"env_vars\.HF_TOKEN") as error:
        check_secrets(Job(["true"], runtime_env={"env_vars": {"HF_TOKEN": "hf_abcdef"}}))
    assert "hf_abcdef" not in str(error.value)
    words = ["python", "-m", "finetune", "tokenizer.vocabulary=8192", "max_tokens=40", "out=s3://bucket/x"]
    check_secrets(Job(words, runtime_env={"env_vars": {"OMP_NUM_THREADS": "4"}}))


def test_lines_of_a_log_are_whole_clean_and_shown_once():
    shown = []
    lines = Lines(shown.append)
    log = "one\ntwo\r\n\x1b[31mred\x1b[0m\n10%\r20%\nevil \x1b]0;title\x07\nlast"
    for piece in ("on", "e\ntw", "o\r"):
        lines.take(piece)
    lines.restart()  # the connection broke: the log comes again from its beginning
    for start in range(0, len(log), 7):
        lines.take(log[start : start + 7])
    assert shown == ["one", "two", "red", "20%", "evil \\x1b]0;title\\x07"]
    lines.take_all(log)
    assert shown[-1] == "last"
    assert len(shown) == 6


def test_what_ray_says_of_its_own_work_is_left_out():
    log = (
        "2026-11-25 03:16:10,929\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
        "Running entrypoint for job x: exec true\nours\n\n"
    )
    assert clean(log) == ["ours", ""]
