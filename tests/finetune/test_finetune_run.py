"""Fine-tuning as a user runs it: a model folder that predicts, modes, resume,
and numbers equal to a loop's.
"""

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
from cluster.training.rank_context import local_context
from finetune.__main__ import main
from finetune.model import load_model
from finetune.run import Parts, _layer_factor, finetune
from finetune.settings import FinetuneSettings
from finetune.tasks.classification.metrics import confusion, per_class, scores
from pretrain.encoders import build_encoder, load_encoder
from pretrain.training.settings import DataSettings
from tests.finetune.stripes import NAMES, arguments, cut_off_after, stripes


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("full") / "run"
    assert run_command(lambda: main(arguments(world, out))) == 0
    return out


def test_a_model_folder_that_predicts(world, finished):
    result = json.loads((finished / "result.json").read_text())
    assert result["metrics"]["accuracy"] > 0.9 and result["validation_images"] == 40
    assert result["class_names"] == sorted(NAMES)
    assert np.array(result["confusion_matrix"]).sum() == 40
    assert {row["class"]: row["images"] for row in result["per_class"]} == dict.fromkeys(NAMES, 20)

    model = load_model(result["model"])
    data = [stripes(number) for number in range(100, 140)]
    predictions = model.predict([image for image, _ in data], batch_size=7)
    right = sum(p.label == label for p, (_, label) in zip(predictions, data, strict=True))
    assert right / 40 == result["metrics"]["accuracy"]
    for prediction in predictions:
        assert prediction.score == max(prediction.scores.values())
        assert sum(prediction.scores.values()) == pytest.approx(1.0, abs=1e-5)
    assert {path.name for path in (finished / "model").iterdir()} == {"model.safetensors", "config.json"}


def test_evaluation_computes_in_the_precision_of_training(world, finished, tmp_path, monkeypatch):
    from finetune.tasks.classification.predictor import ImageClassifier

    seen, evaluate = set(), ImageClassifier.evaluate

    def watched(*arguments, **options):
        seen.add(torch.is_autocast_enabled("cpu"))
        return evaluate(*arguments, **options)

    monkeypatch.setattr(ImageClassifier, "evaluate", watched)
    out = tmp_path / "run"
    assert run_command(lambda: main([*arguments(world, out), "training.precision=bfloat16"])) == 0
    assert seen == {True} and json.loads((out / "result.json").read_text())["metrics"]["accuracy"] > 0.9


def test_check_tells_what_would_happen_and_leaves_nothing(world, tmp_path, capsys):
    out = tmp_path / "run"
    assert run_command(lambda: main([*arguments(world, out), "--check"])) == 0
    told = capsys.readouterr().out
    assert "64 images" in told and "time: 32 steps of" in told and "nothing was started" in told
    assert not out.exists()


def test_images_come_as_files_bytes_arrays_and_images(finished, tmp_path):
    model = load_model(str(finished / "model"))
    data, _ = stripes(200)
    (tmp_path / "a.jpg").write_bytes(data)
    image = Image.open(io.BytesIO(data))
    kinds = [str(tmp_path / "a.jpg"), tmp_path / "a.jpg", data, np.asarray(image), image]
    first, *others = model.predict(kinds)
    for other in others:
        assert other.scores == pytest.approx(first.scores, abs=1e-4)
    assert model.predict(data)[0].label == first.label
    with pytest.raises(UserError, match="image 1: not an image"):
        model.predict([data, b"something else entirely"])


def test_the_linear_mode_changes_the_head_alone(world, tmp_path):
    out = tmp_path / "linear"
    assert run_command(lambda: main(arguments(world, out, mode="linear"))) == 0
    before = load_encoder(str(world / "encoder")).state_dict()
    after = safetensors.torch.load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(after[f"encoder.{name}"], tensor) for name, tensor in before.items())
    assert load_model(str(out / "model")).predict(stripes(0)[0])


def test_cut_off_and_continued_equals_undisturbed(world, finished, tmp_path):
    out = tmp_path / "cut"
    with cut_off_after(13):
        assert run_command(lambda: main(arguments(world, out))) == 130
    assert run_command(lambda: main(arguments(world, out))) == 0
    first, second = (
        safetensors.torch.load_file(Path(o) / "model" / "model.safetensors") for o in (finished, out)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    results = [json.loads((Path(o) / "result.json").read_text()) for o in (finished, out)]
    assert (
        results[0]["metrics"] == results[1]["metrics"] and results[0]["best_step"] == results[1]["best_step"]
    )
    assert results[1]["restarts"] == 1


def test_workers_read_no_footers_and_no_labels_again(world, finished, tmp_path, monkeypatch, one_thread):
    config, *overrides = arguments(world, tmp_path / "run")
    settings = load_settings(FinetuneSettings, config, overrides)
    parts, _ = Parts.of(settings)
    handed = pickle.loads(pickle.dumps(parts))  # as it comes to a worker
    monkeypatch.setattr("pretrain.data.reading.manifest.find_shards", None)
    monkeypatch.setattr("finetune.run.TASKS", None)
    with local_context() as context:
        assert finetune(context, settings, parts=handed)["status"] == "finished"
    first, second = (
        safetensors.torch.load_file(Path(o) / "model" / "model.safetensors")
        for o in (finished, tmp_path / "run")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow  # without Ray, test_classification and test_detection do so on two ranks
@pytest.mark.ray
def test_two_workers_evaluate_the_whole_validation_set_once(world, finished, tmp_path, shared_ray):
    out = tmp_path / "two"
    assert run_command(lambda: main(arguments(world, out, cluster__workers=2))) == 0
    two, one = (json.loads((Path(o) / "result.json").read_text()) for o in (out, finished))
    assert two["validation_images"] == 40
    assert two["metrics"]["accuracy"] == pytest.approx(one["metrics"]["accuracy"], abs=0.051)


def test_random_like_an_encoder_has_its_architecture_but_not_its_weights(world, tmp_path):
    out = tmp_path / "random"
    options = arguments(world, out, encoder=f"random:{world / 'encoder'}", training__steps=1)
    assert run_command(lambda: main(options)) == 0
    config = json.loads((out / "model" / "config.json").read_text())
    assert config["encoder"] == load_encoder(str(world / "encoder")).spec and config["image_size"] == 32


def test_the_same_network_with_fresh_weights_is_set_beside_it(world, tmp_path, capsys):
    out = tmp_path / "compared"
    options = arguments(world, out, compare="[random]", training__epochs=4)
    assert run_command(lambda: main(options)) == 0
    table = json.loads((out / "comparison.json").read_text())
    assert [row["name"] for row in table["rows"]] == ["pretrained", "random weights"]
    for row, folder in zip(table["rows"], (out, out / "compare" / "random"), strict=True):
        assert row["metrics"] == json.loads((folder / "result.json").read_text())["metrics"]
    assert "random weights" in capsys.readouterr().out
    assert run_command(lambda: main(options)) == 0
    assert capsys.readouterr().out.count("is finished already") == 2


def test_evaluate_repeats_the_numbers_of_the_run(world, finished, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    command = ["evaluate", str(finished / "model"), str(world / "validation"), "--json", str(file)]
    assert run_command(lambda: main(command)) == 0
    result = json.loads((finished / "result.json").read_text())
    numbers = json.loads(file.read_text())
    assert numbers["metrics"] == pytest.approx(result["metrics"], abs=1e-6)
    assert numbers["confusion_matrix"] == result["confusion_matrix"]
    assert "accuracy" in capsys.readouterr().out
    assert run_command(lambda: main([*command, "--check"])) == 0
    assert "nothing was started" in capsys.readouterr().out
    assert run_command(lambda: main([*command, "--column", "lable=x"])) == 2
    assert "WHAT one of label, image" in capsys.readouterr().err


def test_scores_equal_a_loop():
    generator = np.random.default_rng(0)
    logits, labels = (
        generator.normal(size=(200, 7)),
        generator.integers(0, 6, 200),
    )  # the last class never occurs
    numbers = scores(torch.from_numpy(logits), torch.from_numpy(labels))
    predicted = logits.argmax(1)
    assert numbers["accuracy"] == pytest.approx((predicted == labels).mean())
    top5 = np.mean([label in row.argsort()[-5:] for row, label in zip(logits, labels)])
    assert numbers["top5_accuracy"] == pytest.approx(top5)
    f1 = []
    for label in range(6):
        right = ((predicted == label) & (labels == label)).sum()
        f1.append(2 * right / ((predicted == label).sum() + (labels == label).sum()))
    assert numbers["macro_f1"] == pytest.approx(np.mean(f1))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, error = probabilities.max(1), 0.0
    for low in np.linspace(0, 1, 16)[:-1]:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs((predicted == labels)[inside].mean() - confidence[inside].mean())
    assert numbers["calibration_error"] == pytest.approx(error, abs=1e-6)
    matrix = confusion(torch.from_numpy(logits), torch.from_numpy(labels))
    assert matrix.sum() == 200 and matrix[6].sum() == 0
    rows = per_class(matrix, list("abcdefg"))
    assert rows[6]["images"] == 0 and rows[6]["f1"] == 0.0


@pytest.mark.parametrize(
    ("task", "encoder", "given", "share"),
    [
        ("classification", "runs/a/encoder", None, 0.75**7),
        ("detection", "runs/a/encoder", None, 1.0),
        ("summarization", "timm:resnet18", None, 1.0),
        ("detection", "runs/a/encoder", 0.9, 0.9**7),
        ("classification", "random:runs/a/encoder", 0.5, 1.0),  # nothing to be spared
    ],
)
def test_layers_learn_alike_where_maps_must_move(task, encoder, given, share):
    settings = FinetuneSettings(
        out="x",
        task=task,
        encoder=encoder,
        validation_url="x",
        data=DataSettings(url="x"),
        layer_decay=given,
    )
    network = build_encoder("convattn_nano")
    assert network.num_layers == 7
    assert _layer_factor("encoder.stem.0.weight", network, settings) == pytest.approx(share)
    assert _layer_factor("head.weight", network, settings) == 1.0
