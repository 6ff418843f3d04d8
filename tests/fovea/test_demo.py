"""`make demo DATA=folder` as a user runs it: with class folders, without, and with nothing to see."""

import json
import os
import subprocess
import sys

import pytest

from cluster.jobs.pipeline.settings import filled, load_pipeline
from cluster.settings import load_settings
from fovea.demo import PIPELINE, SIDE_BY_SIDE, settings_of
from fovea.demo_scores import Row, in_words
from pretrain.settings import PretrainSettings
from tests.pretrain.shards import photo

slow = pytest.mark.slow  # several commands, each of which imports torch


def demo(photos, out):
    command = [sys.executable, "-m", "fovea.demo", "--data", str(photos), "--out", str(out)]
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
    assert json.loads((tmp_path / "out/classify/model/config.json").read_text())["class_names"] == [
        "hats",
        "shoes",
    ]
    encoder = str(tmp_path / "out/pretrain/encoder")
    for words in (
        "embed package:efficientnet_lite0",
        "pretrained  SimCLR",
        "random",
        encoder,
        "kNN accuracy",
    ):
        assert words in done.stdout, done.stdout
    table = done.stdout.partition("On held-out images")[2].partition("The pretrained encoder")[0]
    assert "a classifier  accuracy" in table and max(map(len, table.splitlines())) <= 80, table


@slow
def test_photos_without_classes_end_with_an_encoder_and_its_health(tmp_path):
    write_photos(tmp_path / "photos", [""])
    done = demo(tmp_path / "photos", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/pretrain/encoder/model.safetensors").exists()
    assert (
        "have no class folders" in done.stdout
        and "effective rank" in done.stdout
        and "kNN" not in done.stdout
    )


@slow
@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_folder_without_images_is_told(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    done = demo(tmp_path / folder, tmp_path / "out")
    assert done.returncode == 2 and folder in done.stderr and "Traceback" not in done.stderr


# -- what is said -------------------------------------------------------------------------------------------


def test_the_words_follow_the_numbers_and_their_noise():
    ahead, level, behind = (Row("a model", name, 0.5, None, 0.5 - gain, 0.05) for name, gain in
                            (("good", 0.1), ("even", -0.02), ("bad", -0.1)))  # fmt: skip
    assert [row.standing for row in (ahead, level, behind)] == [
        "ahead",
        "no difference beyond noise",
        "behind",
    ]
    assert in_words([ahead, ahead]) == "The pretrained encoder is ahead of random weights in all 2 scores."
    assert in_words([ahead, level, behind]) == (
        "The pretrained encoder is ahead of random weights in 1 of 3 scores. It is behind in bad of a "
        "model. No difference beyond noise is seen in even of a model."
    )


def test_without_options_the_demo_is_the_pipeline_as_it_stands_in_its_file(monkeypatch):
    monkeypatch.setattr("fovea.demo.num_cpus", lambda: 2)
    asked = settings_of(None, steps=500, has_teacher=True)
    assert load_pipeline(PIPELINE, asked) == load_pipeline(PIPELINE, [])


@pytest.mark.parametrize("num_cpus", [1, 2, 3, 8])
def test_what_was_side_by_side_fits_the_machine(num_cpus, monkeypatch):
    monkeypatch.setattr("fovea.demo.num_cpus", lambda: num_cpus)
    stages = {
        one.name: one for one in load_pipeline(PIPELINE, settings_of(None, steps=4, has_teacher=True)).stages
    }
    for beside in SIDE_BY_SIDE:
        cpus = [stages[name].settings.cpus for name in beside]
        assert 0.9 * num_cpus < sum(cpus) <= num_cpus


def test_without_a_teacher_the_encoder_is_simclrs(monkeypatch):
    stages = {
        one.name: one
        for one in load_pipeline(PIPELINE, settings_of(None, steps=4, has_teacher=False)).stages
    }
    assert not {"features", "simclr"} & set(stages) and "pretrain" in stages["classify"].after
    words = stages["pretrain"].words
    assert "configs/pretrain/demo.yaml" in words and "training.batch_size_global=64" in words
    assert "compare=[random]" in stages["classify"].words


@pytest.mark.parametrize("num_images", [100, 30_000])
def test_many_photos_are_shown_to_the_teacher_when_a_step_needs_them(num_images, tmp_path, monkeypatch):
    (tmp_path / "_import.json").write_text(json.dumps({"classes": {"hats": 50, "shoes": 50}}))
    monkeypatch.setattr("fovea.demo.count_rows", lambda folder: num_images)
    plan = load_pipeline(PIPELINE, settings_of(tmp_path, steps=4, has_teacher=True))
    stages = {one.name: one for one in plan.stages}
    few = num_images < 1000
    assert set(stages) == {"pretrain", "simclr", "classify", *["features"] * few}
    words = stages["pretrain"].words
    assert ("method.arguments.features={features.out}" in words) == few != ("data.keep=none" in words)
    settings = load_settings(PretrainSettings, words[3], filled(words[4:], {"features.out": "/features"}))
    assert settings.data.url == str(tmp_path / "train") == settings.knn.train_url
