"""Summarization as a user runs it: a model folder that predicts, in two languages,
with rows that have no caption.
"""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import distributed

from cluster.errors import run_command
from cluster.training.rank_context import RankContext
from finetune.__main__ import main
from finetune.model import load_model
from finetune.tasks.summarization import Summary
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.shards import Shards
from pretrain.encoders import build_encoder, save_encoder
from tests.pretrain.shards import write_shards
from tests.ranks import run_on_ranks

CONFIG = "configs/finetune/summarization.yaml"
COLOURS = {"đỏ": (220, 40, 40), "xanh": (40, 60, 220)}
SIDES = {"左": 0, "右": 1}


def image(number):
    """A square of one of two colours on one of two sides, and two captions of it, Vietnamese and Chinese."""
    generator = np.random.default_rng(number)
    colour, side = list(COLOURS)[number % 2], list(SIDES)[number // 2 % 2]
    pixels = np.full((32, 32, 3), 128) + generator.normal(0, 15, (32, 32, 3))
    top, left = int(generator.integers(2, 16)), int(generator.integers(2, 5)) + 14 * SIDES[side]
    pixels[top : top + 13, left : left + 11] = COLOURS[colour]
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue(), [f"một ô vuông {colour}.", f"方块在{side}边"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Training and validation shards, one image without captions in each, and an encoder folder."""
    folder = tmp_path_factory.mktemp("world")
    for name, numbers in (("train", range(64)), ("validation", range(100, 140))):
        images, captions = zip(*(image(number) for number in numbers))
        write_shards(folder / name, list(images), captions=[None, *captions[1:]])
    torch.manual_seed(0)
    encoder = build_encoder("convattn_nano", stem_stride=2, dims=[16, 32, 32, 32], depths=[1, 1, 1, 1])
    save_encoder(encoder, str(folder / "encoder"), input_size=32)
    return folder


def arguments(world, out, **more):
    settings = {
        "encoder": world / "encoder",
        "data.url": world / "train",
        "validation_url": world / "validation",
        "out": out,
        "training.batch_size_global": 16,
        "training.epochs": 12,
        "training.warmup_epochs": 1,
        "training.log_every_steps": 1,
        "training.checkpoint_every_steps": 9,
        "evaluate_every_epochs": 4,
        "compare": "[]",
        "report_images": 0,
        "layer_decay": 1.0,
        "optimizer.learning_rate": 0.05,
        "summarization.width": 64,
        "summarization.num_maps": 2,
        "summarization.keyword_max_fraction": 0.6,
        "cluster.workers": 0,
        "cluster.cpus_per_worker": 1,
        **more,
    }
    return [CONFIG, *(f"{key.replace('__', '.')}={value}" for key, value in settings.items())]


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("full") / "run"
    assert run_command(lambda: main(arguments(world, out))) == 0
    return out


def test_a_model_folder_that_predicts(world, finished):
    result = json.loads((finished / "result.json").read_text())
    assert result["best_metric"] == "cider_d" and result["metrics"]["cider_d"] > 2
    assert result["metrics"]["keyword_map"] > 0.9 and result["metrics"]["keyword_f1"] > 0.7
    assert result["validation_images"] == 40 and result["validation_captions"] == 78
    images_of = {row["keyword"]: row["images"] for row in result["per_keyword"]}
    assert images_of == {"vuông xanh": 20, "vuông đỏ": 19, "方块在右": 20, "方块在左": 19}

    model = load_model(result["model"])
    summaries = model.predict([image(number)[0] for number in range(200, 216)])
    right = 0
    for number, summary in enumerate(summaries, 200):
        assert isinstance(summary, Summary) and summary.log_probability < 0
        colour, side = list(COLOURS)[number % 2], list(SIDES)[number // 2 % 2]
        right += summary.sentence in (f"một ô vuông {colour}.", f"方块在{side}边")
        scores = [keyword.score for keyword in summary.keywords]
        assert scores == sorted(scores, reverse=True) and all(score >= 0.5 for score in scores)
        for keyword in summary.keywords:
            assert keyword.text in model.names
            assert keyword.map_HW.shape == (4, 4) and keyword.map_HW.sum() == pytest.approx(1, abs=1e-4)
        left, top, end, bottom = summary.thumbnail
        assert 0 <= left < end <= 1 and 0 <= top < bottom <= 1
    assert right >= 12  # a guess would be right in four of sixteen
    assert {path.name for path in (finished / "model").iterdir()} == {"model.safetensors", "config.json"}


def test_images_without_captions_are_counted_and_listed(world, finished, tmp_path, capsys):
    result = json.loads((finished / "result.json").read_text())
    assert result["validation_images_without_captions"] == 1
    training = result["training_captions"]
    assert (training["images"], training["captions"], training["images_without"]) == (64, 126, 1)
    (place,) = training["first_without"]
    assert place.endswith("row group 0, row 0")
    assert run_command(lambda: main([*arguments(world, tmp_path / "x"), "--check"])) == 0
    assert "1 of 64 training images have no caption" in capsys.readouterr().out

    images, _ = zip(*(image(number) for number in range(20)))
    empty = write_shards(
        tmp_path / "empty", list(images), captions=pa.array([None, []] * 10, pa.list_(pa.string()))
    )
    numbers = write_shards(tmp_path / "numbers", list(images), captions=list(range(20)))
    for url, line in ((empty, "holds no caption in any of 20 rows"), (numbers, "captions must be string")):
        assert run_command(lambda url=url: main(arguments(world, tmp_path / "y", data__url=url))) == 2
        error = capsys.readouterr().err
        assert line in error and len(error.splitlines()) == 1
    none = arguments(world, tmp_path / "z", **{"summarization.keyword_min_images": 1000})
    assert run_command(lambda: main(none)) == 2
    assert "no keyword occurs in 1000 images" in capsys.readouterr().err


def test_cut_off_and_continued_equals_undisturbed(world, finished, tmp_path):
    out = tmp_path / "cut"
    with pytest.MonkeyPatch.context() as patch:
        from pretrain.training import recipe

        whole = recipe.TrainingBatches.__next__
        taken = []

        def cut_off(self):
            taken.append(None)
            if len(taken) > 21:
                raise KeyboardInterrupt
            return whole(self)

        patch.setattr(recipe.TrainingBatches, "__next__", cut_off)
        assert run_command(lambda: main(arguments(world, out))) == 130
    assert run_command(lambda: main(arguments(world, out))) == 0
    first, second = (
        safetensors.torch.load_file(folder / "model" / "model.safetensors") for folder in (finished, out)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    results = [json.loads((folder / "result.json").read_text()) for folder in (finished, out)]
    for name in ("metrics", "examples", "per_keyword", "best_step"):
        assert results[0][name] == results[1][name]
    assert results[1]["restarts"] == 1


def evaluated_by_ranks(model_url, data_url):
    """What each rank says of the whole data set."""
    predictor = load_model(model_url)
    manifest = load_manifest(data_url, columns=["image", "captions"], image_column="image")
    context = RankContext(distributed.get_rank(), distributed.get_world_size(), torch.device("cpu"))
    evaluation = predictor.evaluate(Shards(manifest, image_column="image", columns=["captions"]), context)
    return evaluation.metrics, evaluation.details


@pytest.mark.slow
def test_two_ranks_evaluate_as_one(world, finished):
    result = json.loads((finished / "result.json").read_text())
    for metrics, details in run_on_ranks(
        evaluated_by_ranks, 2, str(finished / "model"), str(world / "validation")
    ):
        assert metrics == pytest.approx(result["metrics"], abs=1e-6)
        for name in (
            "examples",
            "validation_images",
            "validation_captions",
            "validation_images_without_captions",
        ):
            assert details[name] == result[name]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_two_workers_learn_what_one_learns(world, tmp_path, mode, shared_ray):
    results = []
    for workers in (0, 2):
        out = tmp_path / f"workers{workers}"
        options = arguments(world, out, mode=mode, cluster__workers=workers)
        assert run_command(lambda options=options: main(options)) == 0
        results.append(json.loads((out / "result.json").read_text())["metrics"])
    assert results[1]["keyword_map"] == pytest.approx(results[0]["keyword_map"], abs=0.1)
    assert load_model(str(out / "model")).predict(image(300)[0])[0].sentence


@pytest.mark.parametrize("mode", ["linear", "lora"])
def test_other_modes_leave_the_encoder(world, tmp_path, mode):
    out = tmp_path / mode
    assert run_command(lambda: main(arguments(world, out, mode=mode, training__steps=2))) == 0
    tensors = safetensors.torch.load_file(out / "model" / "model.safetensors")
    before = safetensors.torch.load_file(world / "encoder" / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name.removeprefix("encoder.") in before}
    assert all(torch.equal(tensor, before[name.removeprefix("encoder.")]) for name, tensor in kept.items())
    assert isinstance(load_model(str(out / "model")).predict(image(300)[0])[0], Summary)


def test_keywords_from_a_column(world, tmp_path):
    images, captions = zip(*(image(number) for number in range(32)))
    tags = [[caption.split()[-1].strip(".") for caption in several[:1]] for several in captions]
    url = write_shards(
        tmp_path / "tagged", list(images), captions=[several[0] for several in captions], tags=tags
    )
    more = {
        "data.url": url,
        "validation_url": url,
        "summarization.keywords_column": "tags",
        "training.steps": 2,
    }
    assert run_command(lambda: main(arguments(world, tmp_path / "run", **more))) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [row["keyword"] for row in result["per_keyword"]] == ["xanh", "đỏ"]
    assert [row["images"] for row in result["per_keyword"]] == [16, 16]
