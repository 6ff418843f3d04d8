"""`make demo DATA=folder` as a user runs it: with class folders, without, and with nothing to see."""

import json
import subprocess
import sys

import pytest

from tests.pretrain.shards import photo

pytestmark = pytest.mark.slow  # several commands, each of which imports torch


def demo(photos, out):
    command = [sys.executable, "-m", "finetune.demo", "--data", str(photos), "--out", str(out)]
    return subprocess.run([*command, "--steps", "4", "--workers", "0"], capture_output=True, text=True, timeout=600)


def write_photos(folder, classes):
    for number in range(48):
        path = folder / classes[number % len(classes)] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number))


def test_class_folders_lead_to_a_classifier_beside_random_weights(tmp_path):
    write_photos(tmp_path / "photos", ["hats", "shoes"])
    done = demo(tmp_path / "photos", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/pretrain/result.json").read_text())["status"] == "finished"
    assert json.loads((tmp_path / "out/classify/model/config.json").read_text())["class_names"] == ["hats", "shoes"]
    for words in ("pretrained", "random weights", str(tmp_path / "out/pretrain/encoder"), "kNN accuracy"):
        assert words in done.stdout, done.stdout


def test_photos_without_classes_end_with_an_encoder_and_its_health(tmp_path):
    write_photos(tmp_path / "photos", [""])
    done = demo(tmp_path / "photos", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/pretrain/encoder/model.safetensors").exists()
    assert "have no class folders" in done.stdout and "effective rank" in done.stdout and "kNN" not in done.stdout


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_folder_without_images_is_told(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    done = demo(tmp_path / folder, tmp_path / "out")
    assert done.returncode == 2 and folder in done.stderr and "Traceback" not in done.stderr
