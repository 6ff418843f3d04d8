"""`make demo DATA=folder` as a user runs it: with class folders, without, and with nothing to see."""

import json
import os
import subprocess
import sys

import pytest

from cluster.errors import UserError
from finetune.demo import Command, Row, in_words, say_and_run
from tests.pretrain.shards import photo

slow = pytest.mark.slow  # several commands, each of which imports torch


def demo(photos, out):
    command = [sys.executable, "-m", "finetune.demo", "--data", str(photos), "--out", str(out)]
    return subprocess.run(
        [*command, "--steps", "4", "--workers", "0"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "COLUMNS": "80"},
    )


def write_photos(folder, classes):
    for number in range(48):
        path = folder / classes[number % len(classes)] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number))


@slow
def test_class_folders_lead_to_a_classifier_beside_random_weights(tmp_path):
    write_photos(tmp_path / "photos", ["hats", "shoes"])
    done = demo(tmp_path / "photos", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for run in ("pretrain", "simclr"):
        assert json.loads((tmp_path / "out" / run / "result.json").read_text())["status"] == "finished"
    assert json.loads((tmp_path / "out/classify/model/config.json").read_text())["class_names"] == ["hats", "shoes"]
    encoder = str(tmp_path / "out/pretrain/encoder")
    for words in ("embed package:efficientnet_lite0", "pretrained  SimCLR", "random", encoder, "kNN accuracy"):
        assert words in done.stdout, done.stdout
    table = done.stdout.partition("On held-out images")[2].partition("The pretrained encoder")[0]
    assert "a classifier  accuracy" in table and max(map(len, table.splitlines())) <= 80, table


@slow
def test_photos_without_classes_end_with_an_encoder_and_its_health(tmp_path):
    write_photos(tmp_path / "photos", [""])
    done = demo(tmp_path / "photos", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/pretrain/encoder/model.safetensors").exists()
    assert "have no class folders" in done.stdout and "effective rank" in done.stdout and "kNN" not in done.stdout


@slow
@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_folder_without_images_is_told(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    done = demo(tmp_path / folder, tmp_path / "out")
    assert done.returncode == 2 and folder in done.stderr and "Traceback" not in done.stderr


# -- what is said --------------------------------------------------------------------------------------------------------


def test_the_words_follow_the_numbers_and_their_noise():
    ahead, level, behind = (Row("a model", name, 0.5, None, 0.5 - gain, 0.05) for name, gain in
                            (("good", 0.1), ("even", -0.02), ("bad", -0.1)))  # fmt: skip
    assert [row.standing for row in (ahead, level, behind)] == ["ahead", "no difference beyond noise", "behind"]
    assert in_words([ahead, ahead]) == "The pretrained encoder is ahead of random weights in all 2 scores."
    assert in_words([ahead, level, behind]) == (
        "The pretrained encoder is ahead of random weights in 1 of 3 scores. It is behind in bad of a model. "
        "No difference beyond noise is seen in even of a model."
    )


def test_commands_side_by_side_are_named_in_what_they_print_and_one_that_fails_ends_the_demo(capfd):
    fine = Command("fine", "platform", ())
    say_and_run("Two at once", fine, fine)
    printed = capfd.readouterr().out
    assert printed.count("$ python -m platform") == 2 and printed.count("fine | ") == 2
    with pytest.raises(UserError, match="the command of broken failed with exit code 1"):
        say_and_run("One breaks", fine, Command("broken", "no_such_module", ()))
