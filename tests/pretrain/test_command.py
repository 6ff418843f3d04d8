"""The command line of the stages: sub-commands beside CONFIG."""

import pytest

from cluster.errors import UserError
from pretrain.__main__ import USAGE, PretrainSettings
from pretrain.training.command import Command, stage_command


def command_line(arguments, seen):
    def show(rest):
        seen.append(list(rest))
        return 7

    def runner():
        raise AssertionError("the stage itself must not run")

    return stage_command(
        arguments, USAGE, PretrainSettings, runner, commands={"show": Command("shows what it is given", show)}
    )


def test_a_sub_command_gets_the_arguments_behind_its_name():
    seen = []
    assert command_line(["show", "runs/first", "--help"], seen) == 7
    assert seen == [["runs/first", "--help"]]


def test_help_lists_sub_commands_and_settings(capsys):
    assert command_line(["--help"], []) == 0
    told = capsys.readouterr().out
    assert "show  shows what it is given" in told and "views.size" in told


def test_a_name_that_is_none_is_taken_for_a_settings_file():
    with pytest.raises(UserError, match="settings file shwo"):
        command_line(["shwo"], [])
