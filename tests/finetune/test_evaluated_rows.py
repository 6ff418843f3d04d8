"""What a model is evaluated on: rows of classes that it does not know, and rows that it was trained on."""

import json

import numpy as np
import pytest

from cluster.errors import run_command
from finetune.__main__ import main
from finetune.overlap import overlap
from finetune.tasks.detection.boxes import UNKNOWN, TargetReader
from pretrain.data.reading.annotation_columns import BoxColumn
from pretrain.data.reading.labels import ClassNames
from pretrain.data.reading.manifest import load_manifest
from tests.finetune.test_export_model import NAMES, a_model
from tests.pretrain.shards import encoded, photo, write_shards


def evaluated(model, data, folder):
    """The exit code of `evaluate`, and its numbers."""
    found = folder / "found.json"
    code = run_command(lambda: main(["evaluate", model, data, "--json", str(found)]))
    return code, json.loads(found.read_text()) if code == 0 else None


@pytest.fixture
def model(tmp_path):
    return a_model(tmp_path, "full")


def test_classes_that_the_model_does_not_know_are_counted(model, tmp_path, capsys):
    images = [photo(number, side=32) for number in range(24)]
    labels = [NAMES[number % 3] for number in range(24)]
    whole = evaluated(model, write_shards(tmp_path / "known", images, label=labels), tmp_path)[1]
    more = [photo(number, side=32) for number in range(100, 105)]
    mixed = write_shards(tmp_path / "mixed", [*more, *images], label=["zebra"] * 3 + ["yak"] * 2 + labels)
    capsys.readouterr()
    code, found = evaluated(model, mixed, tmp_path)
    assert code == 0 and found["unknown_classes"] == {"yak": 2, "zebra": 3}
    assert found["metrics"] == pytest.approx(whole["metrics"]) and found["validation_images"] == 24
    assert (
        "5 labels of classes that the model does not know are left out: yak (2), zebra (3)"
        in capsys.readouterr().out
    )
    strangers = write_shards(tmp_path / "strange", more, label=["zebra"] * 5)
    assert evaluated(model, strangers, tmp_path)[0] == 2
    assert "no image of the data is of a class that the model knows" in capsys.readouterr().err


def test_boxes_of_classes_that_a_detector_does_not_know_are_left_out():
    reader = TargetReader(BoxColumn("objects", "bbox", "category"), ClassNames(("a", "b"), ["a", "b"]))
    value = {
        "bbox": [[1.0, 1.0, 5.0, 5.0], [2.0, 2.0, 5.0, 5.0], [50.0, 2.0, 5.0, 5.0]],
        "category": ["b", "zebra", "a"],
    }
    target, left_out = reader.read(value, width=20, height=20, location="row 3")
    assert target.classes_N.tolist() == [1] and target.xyxy_N4.tolist() == [[1.0, 1.0, 6.0, 6.0]]
    assert left_out.counts[UNKNOWN] == 1 and sum(left_out.counts.values()) == 2


def test_validation_rows_that_are_training_rows_are_counted(tmp_path):
    images = [encoded(number) for number in range(30)]
    train = load_manifest(write_shards(tmp_path / "train", images[:20]))
    validation = load_manifest(
        write_shards(tmp_path / "validation", [*images[20:], images[3], None, images[7], images[3]])
    )
    found = overlap(train, validation, image_column="image")
    assert (found.num, found.num_validation, found.num_train) == (3, 13, 20)
    assert (
        "3 of 13 validation rows that were looked at are equal to training rows" in str(found)
        and found.first
    )
    assert overlap(validation, train, image_column="image").num == 2
    apart = load_manifest(write_shards(tmp_path / "apart", images[20:25]))
    assert overlap(train, apart, image_column="image").num == 0


def test_an_unknown_label_is_no_class():
    classes = ClassNames((0, 1), ["a", "b"])
    assert classes.known([1, 5, 0, None]).tolist() == [True, False, True, False]
    assert classes.known([]).dtype == np.bool_
