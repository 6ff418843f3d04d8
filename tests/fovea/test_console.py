"""`fovea`: one command for all, its completion, and the reference of settings."""

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.schemas import described
from finetune.settings import FinetuneSettings
from fovea import settings_reference
from fovea.__main__ import COMMANDS, main
from fovea.completion import script


def test_help_lists_every_command_and_imports_nothing_heavy(capsys):
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name}" in told for name in COMMANDS)
    heavy = "{'torch', 'ray', 'pyarrow'}"
    code = (
        f"import sys; from fovea.__main__ import main; main(['--help']); print({heavy} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pretrain", "--help"], "training.epochs"),
        (["finetune", "--help"], "validation_url"),
        (["data", "import", "--help"], "--drop-duplicates"),
        (["submit", "--help"], "--runtime-env"),
        (["demo", "--help"], "--steps"),
    ],
)
def test_commands_are_those_of_the_packages(words, expected, capsys):
    try:
        assert main(words) == 0
    except SystemExit as end:
        assert end.code == 0
    assert expected in capsys.readouterr().out


def test_a_misspelt_command_is_one_line(capsys):
    assert main(["pretrian"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command 'pretrian'; did you mean 'pretrain'?")
    assert main([]) == 2


@pytest.fixture(scope="module")
def completion(tmp_path_factory):
    """Completes a line in a real bash, as its readline would split it; returns what is offered."""
    path = tmp_path_factory.mktemp("completion") / "fovea"
    path.write_text(script("bash"))

    def complete(*words):
        asked = (
            'source "$1"; shift; COMP_WORDS=(fovea "$@"); COMP_CWORD=$#; compopt() { :; }; '
            '_fovea; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        run = subprocess.run(
            ["bash", "-c", asked, "bash", path, *words], capture_output=True, text=True, check=True
        )
        assert not run.stderr, run.stderr
        return run.stdout.split()

    return complete


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["pre"], {"pretrain"}),
        (["data", ""], {"import", "check", "views", "demo", "--help"}),
        (["data", "import", "a", "b", "--drop"], {"--drop-duplicates"}),
        (["pretrain", "a.yaml", "training.ep"], {"training.epochs="}),
        (["pretrain", "a.yaml", "method.on_collapse", "="], {"warn", "stop"}),
        (["finetune", "a.yaml", "mode", "=", "lo"], {"lora"}),
        (["finetune", "a.yaml", "out", "="], set()),
        (["finetune", "predict", "--loc"], {"--localize"}),
        (["pretrain", "export", "a", "b", "--format", "on"], {"onnx"}),
        (["logs", "--fo"], {"--follow"}),
        (["completion", "b"], {"bash"}),
    ],
)
def test_bash_completes(completion, words, offered):
    assert set(completion(*words)) == offered


@pytest.fixture(scope="module")
def zsh(tmp_path_factory):
    """Types a line in a real zsh and presses the tabulator once; returns what stands there then."""
    folder = tmp_path_factory.mktemp("zsh")
    (folder / "_fovea").write_text(script("zsh"))
    tell = "tell() { print -r -- \"<$BUFFER>\"; }; zle -N tell; bindkey '^G' tell"
    start = (
        f"fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -d {folder}/dump; {tell}; print "
        "rea''dy\n"
    )

    def type_(line):
        process, terminal = pty.fork()
        if process == 0:
            os.environ.update(TERM="dumb", COLUMNS="200", HOME=str(folder))
            os.execvp("zsh", ["zsh", "-f", "-i"])
        try:
            os.write(terminal, start.encode())
            read(terminal, "ready")
            os.write(terminal, f"{line}\t\a".encode())
            return read(terminal, ">\r").rpartition(">\r")[0].rpartition("<")[2]
        finally:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os.close(terminal)

    def read(terminal, until, seconds=30.0):
        said, deadline = "", time.monotonic() + seconds
        while until not in said:
            assert time.monotonic() < deadline, said
            if select.select([terminal], [], [], 0.2)[0]:
                said += os.read(terminal, 65536).decode(errors="replace")
        return said

    return type_


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh here")
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("fovea pre", "fovea pretrain "),
        ("fovea data import a b --drop", "fovea data import a b --drop-duplicates "),
        ("fovea pretrain a.yaml training.ep", "fovea pretrain a.yaml training.epochs="),
        ("fovea finetune a.yaml mode=lo", "fovea finetune a.yaml mode=lora "),
        ("fovea pretrain export a b --format on", "fovea pretrain export a b --format onnx "),
    ],
)
def test_zsh_completes(zsh, line, completed):
    assert zsh(line) == completed


def test_both_shells_know_every_setting():
    for shell in ("bash", "zsh"):
        text = script(shell)
        assert all(f"{one.key}=" in text for one in described(FinetuneSettings)), shell


def test_the_reference_of_settings_is_current():
    page = Path(settings_reference.PAGE)
    assert page.read_text() == settings_reference.page(), (
        "run: python -m fovea.settings_reference docs/settings.md"
    )
