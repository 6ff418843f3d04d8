"""Boxes that mean something else than they are read as, or are too small to be learnt,
are found before training.
"""

import numpy as np
import pytest

from cluster.errors import UserError
from cluster.settings import load_settings
from finetune.settings import FinetuneSettings
from finetune.tasks.detection.task import Detection
from pretrain.data.reading.manifest import load_manifest
from pretrain.encoders import build_encoder
from tests.finetune.shapes import write_images


@pytest.fixture(scope="module")
def encoder():
    return build_encoder("convattn_nano", stem_stride=2)


def task_of(folder, change, *more, numbers=range(40)):
    """The task of data whose training boxes are changed."""
    train = write_images(folder / "train", numbers, change=lambda number, objects: change(number, objects))
    validation = write_images(folder / "validation", range(100, 110))
    given = [
        "task=detection",
        "encoder=random",
        f"data.url={train}",
        f"validation_url={validation}",
        "out=none",
        *more,
    ]
    settings = load_settings(FinetuneSettings, None, given)
    return Detection(settings, load_manifest(train), load_manifest(validation))


def boxed(change):
    return lambda number, objects: {
        **objects,
        "bbox": [change(number, np.array(box)).tolist() for box in objects["bbox"]],
    }


def as_corners(number, box):
    return np.concatenate([box[:2], box[:2] + box[2:]])


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        (as_corners, [], "nearly all do as xyxy; try detection.box_format=xyxy"),
        (
            lambda number, box: box,
            ["detection.box_format=xyxy"],
            "nearly all do as xywh; try detection.box_format=xywh",
        ),
        (lambda number, box: box / 100, [], "look like fractions of the image's sides"),
        (
            lambda number, box: np.add(box, [500 * (number % 3 == 0), 0, 0, 0]),
            [],
            r"outside of the image.*max_bad_fraction=0.05",
        ),
        (
            lambda number, box: box * [1, 1, number % 3 > 0, 1],
            [],
            r"without area.*more than data.max_bad_fraction=0.05",
        ),
    ],
)
def test_wrong_boxes_are_refused_by_what_is_wrong(change, more, said, encoder, tmp_path):
    with pytest.raises(UserError, match=said):
        task_of(tmp_path, boxed(change), *more).config_for(encoder, 64)


def test_a_higher_share_lets_them_pass(encoder, tmp_path):
    flat = boxed(lambda number, box: box * [1, 1, number % 3 > 0, 1])
    task = task_of(tmp_path, flat, "data.max_bad_fraction=0.5")
    assert task.config_for(encoder, 64)["strides"]


def test_boxes_that_are_too_small_are_counted_and_said(encoder, tmp_path):
    tiny = boxed(lambda number, box: np.array([box[0], box[1], 1.5, 1.5]) if number % 2 else box)
    task = task_of(tmp_path, tiny, "data.max_bad_fraction=1")
    config = task.config_for(encoder, 64)
    assert task.findings["boxes_too_small_of_those_looked_at"] > 10 and config["strides"]
    (told,) = [note for note in task.notes if "smaller than 2 pixels at image_size=64" in note]
    assert "image_size=" in told.split(";")[1]
    task.config_for(encoder, 64)
    assert len([note for note in task.notes if "smaller than" in note]) == 1
    assert "boxes_too_small_of_those_looked_at" not in task_of(tmp_path / "b", lambda n, o: o).findings


def test_no_box_that_is_large_enough_ends_it(encoder, tmp_path):
    tiny = boxed(lambda number, box: np.array([box[0], box[1], 1.5, 1.5]))
    with pytest.raises(
        UserError, match=r"of .* boxes that were looked at are smaller than 2 pixels .* cut the images"
    ):
        task_of(tmp_path, tiny).config_for(encoder, 64)
