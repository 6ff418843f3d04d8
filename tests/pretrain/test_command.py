"""The command line of the stages: sub-commands beside CONFIG."""

import pytest

from cluster.command_line import Command
from cluster.errors import UserError
from pretrain.__main__ import USAGE
from pretrain.settings import PretrainSettings
from pretrain.training.command import stage_command

seen = []


def main(arguments):
    """What the sub-command `show` runs."""
    seen.append(list(arguments))
    return 7


def command_line(arguments):
    def runner():
        raise AssertionError("the stage itself must not run")

    show = Command("shows what it is given", __name__)
    return stage_command(arguments, USAGE, PretrainSettings, runner, commands={"show": show})


def test_a_sub_command_gets_the_arguments_behind_its_name():
    seen.clear()
    assert command_line(["show", "runs/first", "--help"]) == 7
    assert seen == [["runs/first", "--help"]]


def test_help_lists_sub_commands_and_settings(capsys):
    assert command_line(["--help"]) == 0
    told = capsys.readouterr().out
    assert "show  shows what it is given" in told and "views.size" in told


def test_a_name_that_is_none_is_taken_for_a_settings_file():
    with pytest.raises(UserError, match="settings file shwo"):
        command_line(["shwo"])


def test_settings_may_be_written_as_options(tmp_path):
    seen.clear()

    def runner():
        return lambda settings, *, check_only: seen.append((settings, check_only)) or 0

    config = tmp_path / "settings.yaml"
    config.write_text("data: {url: shards}\nout: run\n")
    for words in (
        ["training.steps=7", "training.batch_size_global=16"],
        ["--training.steps", "7", "--training.batch-size-global=16"],
    ):
        assert stage_command([str(config), *words, "--check"], USAGE, PretrainSettings, runner) == 0
    assert seen[0] == seen[1] and seen[0][0].training.steps == 7 and seen[0][1]
    with pytest.raises(UserError, match=r"--training.steps has no value"):
        stage_command([str(config), "--training.steps", "--check"], USAGE, PretrainSettings, runner)
    with pytest.raises(UserError, match=r"training.stebs.*did you mean"):
        stage_command([str(config), "--training.stebs=7"], USAGE, PretrainSettings, runner)
