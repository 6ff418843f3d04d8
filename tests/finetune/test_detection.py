"""Detection as a user runs it: boxes that cannot be used, COCO's numbers of a model, resume, learning."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from cluster.errors import UserError, run_command
from cluster.settings import load_settings
from cluster.training.rank_context import RankContext, local_context
from finetune.__main__ import main
from finetune.model import load_model
from finetune.run import Parts
from finetune.settings import FinetuneSettings
from finetune.tasks.detection.boxes import TargetReader, boxes_column_of, classes_of, take_census
from finetune.tasks.detection.hard_attention import make_attention_hard
from finetune.tasks.detection.heads import HEADS
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.shards import Shards
from pretrain.encoders import build_encoder, save_encoder
from tests.finetune.shapes import CLASSES, SMALL, image, write_images
from tests.ranks import run_on_ranks

CONFIG = "configs/finetune/detection.yaml"
NAN = float("nan")


def spoilt(number, objects):
    """Boxes of which some cannot be used: without area, outside, not finite, and lists of two lengths."""
    if number == 1:
        objects["bbox"] += [[5.0, 5.0, 0.0, 4.0], [500.0, 5.0, 10.0, 10.0], [NAN, 1.0, 2.0, 3.0]]
        objects["category"] += ["disc", "bar", "disc"]
    if number == 2:
        objects["category"] = objects["category"][:-1]
    return {"bbox": [], "category": []} if number == 3 else None if number == 4 else objects


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Training and validation shards, both with boxes that cannot be used, and an encoder folder."""
    folder = tmp_path_factory.mktemp("world")
    write_images(folder / "train", range(40), change=spoilt)
    write_images(folder / "validation", [1, 2, 3, 4, *range(100, 116)], change=spoilt)
    torch.manual_seed(0)
    save_encoder(build_encoder("convattn_nano", **SMALL), str(folder / "encoder"), input_size=32)
    return folder


def arguments(world, out, **more):
    settings = {
        "encoder": world / "encoder",
        "data.url": world / "train",
        "validation_url": world / "validation",
        "out": out,
        "image_size": 64,
        "training.batch_size_global": 4,
        "training.steps": 6,
        "training.warmup_epochs": 0,
        "training.log_every_steps": 1,
        "training.checkpoint_every_steps": 2,
        "evaluate_every_epochs": 0,
        "compare": "[]",
        "report_images": 0,
        "layer_decay": 1.0,
        "detection.channels": 32,
        "detection.depth": 1,
        "cluster.workers": 0,
        **more,
    }
    return [CONFIG, *(f"{key.replace('__', '.')}={value}" for key, value in settings.items())]


def test_what_is_known_of_the_data_goes_to_workers(world, tmp_path):
    config, *overrides = arguments(world, tmp_path / "out")
    parts, _ = Parts.of(load_settings(FinetuneSettings, config, overrides))
    there = pickle.loads(pickle.dumps(parts))
    assert there.task.config == parts.task.config and there.task_config == parts.task_config
    assert there.manifest.fingerprint == parts.manifest.fingerprint


def run(world, out, **more):
    assert run_command(lambda: main(arguments(world, out, **more))) == 0
    return json.loads((Path(out) / "result.json").read_text())


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A finished run of Faster R-CNN, whose training samples candidates at random."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run(world, out, detection__head="faster_rcnn", training__steps=8)
    return out


# -- boxes --------------------------------------------------------------------------------------------------


def test_boxes_that_cannot_be_used_are_counted_and_listed_and_training_goes_on(world, finished, capsys):
    result = json.loads((finished / "result.json").read_text())
    left_out = result["training_boxes_left_out"]
    assert left_out["counts"] == {"not four finite numbers": 2, "without area": 1}
    assert any(
        "row group 0, row 1, box" in place and place.endswith("without area") for place in left_out["places"]
    )
    assert result["boxes_outside_of_pictures_looked_at"]["counts"] == {"outside of the image": 1}
    good = sum(len(image(number)[1]["bbox"]) for number in range(40) if number not in (2, 3, 4))
    assert (
        result["training_boxes"] == good + 1
    )  # that outside of its image is known once the image is opened
    evaluated = result["validation_boxes_left_out"]
    assert evaluated["counts"] == {
        "not four finite numbers": 2,
        "outside of the image": 1,
        "without area": 1,
    }
    assert result["validation_images"] == 20
    assert run_command(lambda: main([*arguments(world, finished.parent / "other"), "--check"])) == 0
    told = capsys.readouterr().out
    assert (
        "training images (3 without any); left out: 2 not four finite numbers, 1 without area (first:"
        in told
    )


def test_a_bad_box_does_not_cost_its_neighbours(world):
    manifest = load_manifest(str(world / "train"), columns=["objects"])
    column = boxes_column_of(manifest, "objects", "xywh")
    census = take_census(Shards(manifest, image_column="image", columns=["objects"]), column)
    reader = TargetReader(column, classes_of(census, census))
    objects = {
        "bbox": [[1, 2, 3, 4], [NAN, 0, 1, 1], [60, 60, 30, 30], [0, 0, -5, 5]],
        "category": ["disc"] * 4,
    }
    as_structs = [
        {"bbox": box, "category": name}
        for box, name in zip(objects["bbox"], objects["category"], strict=True)
    ]
    for value in (objects, as_structs):
        target, left_out = reader.read(value, width=64, height=64, location="here")
        assert target.xyxy_N4.tolist() == [[1, 2, 4, 6], [60, 60, 64, 64]] and target.classes_N.tolist() == [
            1,
            1,
        ]
        assert left_out.counts == {"not four finite numbers": 1, "without area": 1}
    some = take_census(Shards(manifest.chosen(np.arange(0, 40, 4)), image_column="image"), column)
    assert some.num_rows == 10 and sum(some.boxes_of_class.values()) == sum(
        len(image(number)[1]["bbox"]) for number in range(0, 40, 4) if number != 4
    )
    for value in (None, {"bbox": None, "category": None}, {"bbox": [], "category": []}):
        target, left_out = reader.read(value, width=64, height=64)
        assert target.xyxy_N4.shape == (0, 4) and not left_out.counts


@pytest.mark.parametrize(
    ("spoil", "settings", "words"),
    [
        (None, {"detection.objects_column": "boxes"}, "no column 'boxes'"),
        (lambda n, o: {"bbox": [], "category": []}, {}, "holds no box that can be used"),
        (lambda n, o: {"bbox": [[1.0, 1.0, 0.0, 2.0]], "category": ["disc"]}, {},
         "(left out: 16 without area)"),
        (lambda n, o: {"bbox": [[900.0, 0.0, 5.0, 5.0]], "category": ["disc"]}, {}, "outside of the image"),
        (None, {"detection.strides": "[3,6]"},
         "give strides of which each is twice the one before, of 1, 2, 4"),
        (None, {"detection.channels": 40}, "it must be a multiple of 32"),
        (None, {"detection.min_scale": 3}, "it is more than detection.max_scale=2"),
        (None, {"encoder": "random:timm:resnet18", "detection.hard_attention_keys": 4},
         "no attention that can be hard"),
    ],
)  # fmt: skip
def test_one_clear_line_when_it_cannot_be(world, tmp_path, capsys, spoil, settings, words):
    if spoil is not None:
        write_images(tmp_path / "train", range(100, 116), change=spoil)
        settings = {"data.url": tmp_path / "train", "validation_url": tmp_path / "train"}
    assert run_command(lambda: main(arguments(world, tmp_path / "run", **settings))) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_a_class_that_training_never_shows_is_named(world, tmp_path, capsys):
    def renamed(number, objects):
        return {**objects, "category": ["star", *objects["category"][1:]]}

    write_images(tmp_path / "validation", range(4), change=renamed)
    assert (
        run_command(lambda: main(arguments(world, tmp_path / "run", validation_url=tmp_path / "validation")))
        == 2
    )
    assert "training data never shows: star; training knows bar, disc" in capsys.readouterr().err


# -- numbers ------------------------------------------------------------------------------------------------


def test_numbers_equal_those_of_pycocotools_on_files(world, finished, tmp_path, capsys):
    """The same model's predictions, written as COCO json by hand, evaluated by pycocotools alone."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    model = load_model(str(finished / "model"))
    numbers = list(range(100, 116))
    write_images(tmp_path / "data", numbers)
    file = tmp_path / "numbers.json"
    assert (
        run_command(
            lambda: main(["evaluate", str(finished / "model"), str(tmp_path / "data"), "--json", str(file)])
        )
        == 0
    )
    ours = json.loads(file.read_text())

    images = [image(number) for number in numbers]
    truth = {
        "images": [{"id": number} for number in numbers],
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASSES)],
        "annotations": [],
    }
    for number, (_, objects) in zip(numbers, images, strict=True):
        for box, name in zip(objects["bbox"], objects["category"], strict=True):
            annotation = {"image_id": number, "category_id": CLASSES.index(name), "bbox": box, "iscrowd": 0}
            truth["annotations"].append(
                {**annotation, "area": box[2] * box[3], "id": len(truth["annotations"]) + 1}
            )
    found = []
    everything = model.predict([data for data, _ in images], score_threshold=0.0)
    for number, detections in zip(numbers, everything, strict=True):
        for (left, top, right, bottom), label, score in detections:
            box = [left, top, right - left, bottom - top]
            found.append(
                {"image_id": number, "category_id": CLASSES.index(label), "bbox": box, "score": score}
            )
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    coco = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    stats = evaluation.stats
    assert stats[0] >= 0
    for name, place in (("map", 0), ("ap50", 1), ("ap75", 2), ("ap_small", 3), ("recall", 8)):
        assert ours["metrics"][name] == pytest.approx(stats[place], abs=1e-9), name
    assert "ap_large" not in ours["metrics"] and stats[5] == -1
    of_class = [row["ap"] for row in ours["per_class"]]
    assert np.mean(of_class) == pytest.approx(stats[0], abs=1e-9)


def evaluated_metrics(model_url, data_url):
    model = load_model(model_url)
    manifest = load_manifest(data_url, columns=["objects"])
    shards = Shards(manifest, image_column="image", columns=["objects"])
    with local_context() as context:
        evaluation = model.evaluate(shards, context)
    return evaluation.metrics, evaluation.details


def evaluated_on_rank(model_url, data_url):
    """The evaluation of a rank, and its number."""
    from torch import distributed

    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    model = load_model(model_url)
    manifest = load_manifest(data_url, columns=["objects"])
    shards = Shards(manifest, image_column="image", columns=["objects"])
    context = RankContext(rank=rank, world_size=world_size, device=torch.device("cpu"))
    evaluation = model.evaluate(shards, context)
    return evaluation.metrics, evaluation.details


@pytest.mark.slow
def test_two_ranks_evaluate_as_one(world, finished):
    url, data = str(finished / "model"), str(world / "validation")
    alone = evaluated_metrics(url, data)
    for evaluated in run_on_ranks(evaluated_on_rank, 2, url, data):
        assert evaluated[0] == pytest.approx(alone[0], abs=1e-9)
        assert evaluated[1]["validation_images"] == alone[1]["validation_images"] == 20
        assert evaluated[1]["validation_boxes_left_out"] == alone[1]["validation_boxes_left_out"]


# -- runs ---------------------------------------------------------------------------------------------------


def test_predictions_are_typed_and_in_the_images_pixels(finished):
    model = load_model(str(finished / "model"))
    data = [image(number)[0] for number in range(100, 105)]
    everything = model.predict(data, batch_size=2, score_threshold=0.0)
    for detections, encoded in zip(everything, data, strict=True):
        width, height = Image.open(io.BytesIO(encoded)).size
        assert len(detections) == len(detections.scores) == len(detections.boxes_N4) > 0
        assert set(detections.labels) <= set(CLASSES) and (np.diff(detections.scores) <= 0).all()
        assert (detections.boxes_N4 >= 0).all() and (detections.boxes_N4[:, 2] <= width).all()
        assert (detections.boxes_N4[:, 3] <= height).all()
    assert len(model.predict(data[0], score_threshold=1.0)[0]) == 0
    least = float(everything[0].scores[2])
    assert len(model.predict(data[0], score_threshold=least)[0]) == (everything[0].scores >= least).sum()


def test_attention_of_a_loaded_encoder_becomes_hard(world, tmp_path):
    from pretrain.encoders import load_encoder

    images = torch.randn(1, 3, 64, 64)
    encoder = load_encoder(str(world / "encoder")).eval()
    soft = encoder.attention(images)
    make_attention_hard(encoder, num_keys=3, num_stages=1)
    hard = encoder.attention(images)
    last, before = "stage4.block1", "stage3.block1"
    assert ((soft[last] > 0).sum(-1) == 16).all() and ((hard[last] > 0).sum(-1) == 3).all()
    assert torch.equal(soft[before], hard[before])
    with pytest.raises(UserError, match="no attention that can be hard"):
        make_attention_hard(build_encoder("timm:resnet18"), num_keys=3, num_stages=1)

    # the run's model keeps it, beside adapters too
    run(world, tmp_path / "hard", training__steps=1, detection__hard_attention_keys=2, mode="lora")
    saved = safetensors.torch.load_file(tmp_path / "hard" / "model" / "model.safetensors")
    assert all(".lora_" in name for name in saved if name.startswith("encoder."))
    model = load_model(str(tmp_path / "hard" / "model")).model
    assert ((model.encoder.attention(images)[last] > 0).sum(-1) == 2).all()


def test_cut_off_and_continued_equals_undisturbed(world, finished, tmp_path):
    out = tmp_path / "cut"
    options = {"detection__head": "faster_rcnn", "training__steps": 8}
    with pytest.MonkeyPatch.context() as patch:
        from pretrain.training import recipe

        whole, taken = recipe.TrainingBatches.__next__, []

        def cut_off(self):
            taken.append(None)
            if len(taken) > 5:
                raise KeyboardInterrupt
            return whole(self)

        patch.setattr(recipe.TrainingBatches, "__next__", cut_off)
        assert run_command(lambda: main(arguments(world, out, **options))) == 130
    result = run(world, out, **options)
    first, second = (
        safetensors.torch.load_file(Path(o) / "model" / "model.safetensors") for o in (finished, out)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    before = json.loads((finished / "result.json").read_text())
    assert result["restarts"] == 1 and result["metrics"] == before["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("head", sorted(HEADS))
def test_a_detector_learns(world, tmp_path, head):
    write_images(tmp_path / "train", range(200, 520), rows_per_group=64)
    result = run(
        world,
        tmp_path / "run",
        data__url=tmp_path / "train",
        detection__head=head,
        detection__depth=2,
        training__batch_size_global=16,
        training__steps=200,
        optimizer__learning_rate=3e-3,
    )
    assert result["metrics"]["ap50"] > 0.8, result["metrics"]
