"""COCO's numbers of boxes worked by hand, and how far they move from one set of images to another."""

import numpy as np
import pytest

from finetune.tasks.detection.metrics import EvaluatedImage, coco_scores, evaluated_scores


def evaluated_image(row_id, true, found, *, classes=None, scores=None):
    true, found = np.array(true, np.float32).reshape(-1, 4), np.array(found, np.float32).reshape(-1, 4)
    labels = (
        np.zeros(len(true), np.int64),
        np.zeros(len(found), np.int64) if classes is None else np.array(classes),
    )
    certain = (
        np.linspace(0.9, 0.1, len(found), dtype=np.float32)
        if scores is None
        else np.array(scores, np.float32)
    )
    return EvaluatedImage(row_id, 100, 100, true, labels[0], found, labels[1], certain)


def test_numbers_of_cases_worked_by_hand():
    box = [10, 10, 50, 50]
    exact, _ = coco_scores([evaluated_image(0, [box], [box])], ["a", "b"])
    for name in ("map", "ap50", "ap_medium", "recall"):
        assert exact[name] == pytest.approx(1.0)
    shifted, rows = coco_scores([evaluated_image(0, [box], [[10, 10, 50, 40]])], ["a", "b"])  # overlap 0.75
    assert shifted["ap75"] == pytest.approx(1.0) and shifted["map"] == pytest.approx(0.6)
    assert rows[0]["ap"] == pytest.approx(0.6) and rows[1]["ap"] is None and rows[1]["boxes"] == 0
    nothing, _ = coco_scores([evaluated_image(0, [box], [])], ["a"])
    assert nothing["map"] == 0
    # a surer wrong one halves the precision; an empty image's does too
    wrong, _ = coco_scores([evaluated_image(0, [box], [[60, 60, 90, 90], box])], ["a"])
    empty, _ = coco_scores(
        [evaluated_image(0, [box], [box], scores=[0.5]), evaluated_image(1, [], [box])], ["a"]
    )
    assert wrong["ap50"] == empty["ap50"] == pytest.approx(0.5)


def test_error_of_map_is_how_far_it_moves_over_other_sets_of_images():
    generator = np.random.default_rng(3)
    images = []
    for number in range(40):
        true = [[10, 10, 50, 50], [55, 55, 90, 90]]
        found = [
            [10, 10, 50, 50 - generator.integers(0, 25)],
            [55, 55, 90 - generator.integers(0, 20), 90],
            [0, 0, 9, 9],
        ]
        images.append(
            evaluated_image(number, true, found, scores=generator.random(3), classes=[0, 0, number % 2])
        )
    _, _, error = evaluated_scores(images, ["a", "b"])
    redrawn = [
        coco_scores([images[i] for i in generator.integers(0, 40, 40)], ["a", "b"])[0]["map"]
        for _ in range(60)
    ]
    assert 0.7 < error / np.std(redrawn, ddof=1) < 1.4
    # images that are all alike leave nothing to chance
    assert evaluated_scores(images[:1] * 20, ["a", "b"])[2] == pytest.approx(0, abs=1e-9)
