"""What classification can be told: several classes an image, few labels, rare classes, mixtures,
early stopping, its head.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score

from cluster.errors import run_command
from cluster.training.rank_context import local_context
from finetune.__main__ import main
from finetune.model import load_model
from finetune.tasks.classification.metrics import multi_label_scores, per_label
from finetune.tasks.classification.mixing import Mixing
from finetune.tasks.classification.model import Classifier
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.shards import Shards
from pretrain.encoders import build_encoder
from pretrain.training import distributed
from tests.finetune.stripes import NAMES, arguments, cut_off_after, stripes
from tests.pretrain.shards import write_shards
from tests.ranks import run_on_ranks


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """Stripes whose labels are lists: the class, `bright` for every third,
    and nothing at all for every seventh.
    """
    folder = tmp_path_factory.mktemp("tagged")
    for name, numbers in (("train", range(64)), ("validation", range(100, 140))):
        images, labels = zip(*(stripes(number) for number in numbers))
        lists = [
            [] if n % 7 == 0 else [label] + ["bright"] * (n % 3 == 0)
            for n, label in zip(numbers, labels, strict=True)
        ]
        write_shards(folder / name, list(images), labels=lists, label=list(labels))
    return folder


def run(world, out, **more):
    assert run_command(lambda: main(arguments(world, out, **more))) == 0
    return json.loads((out / "result.json").read_text())


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_several_classes_an_image(world, tagged, tmp_path, capsys):
    out = tmp_path / "run"
    more = {"data.url": tagged / "train", "validation_url": tagged / "validation"}
    more |= {
        "classification.label_column": "labels",
        "classification.balance": "weights",
        "training.epochs": 6,
    }
    more["report_images"] = 20
    result = run(world, out, **more)
    assert result["best_metric"] == "mean_average_precision" and "confusion_matrix" not in result
    truly = {row["class"]: row["images"] for row in result["per_class"]}
    kept = [n for n in range(100, 140) if n % 7]
    assert truly["bright"] == sum(n % 3 == 0 for n in kept) and truly[NAMES[0]] == sum(
        n % 2 == 0 for n in kept
    )
    ranked = {row["class"]: row["average_precision"] for row in result["per_class"]}
    assert min(ranked[name] for name in NAMES) > 0.8
    assert np.mean(list(ranked.values())) == pytest.approx(result["metrics"]["mean_average_precision"])

    assert capsys.readouterr().out.count("report") == 0  # no warning
    page = (out / "report.html").read_text()
    assert "mean average precision of" in page and "&lt;/b&gt;, bright" in page

    model = load_model(result["model"])
    for prediction in model.predict([stripes(number)[0] for number in range(100, 110)]):
        shown = sorted(
            (n for n, p in prediction.scores.items() if p >= 0.5), key=lambda n: -prediction.scores[n]
        )
        assert prediction.labels == shown and prediction.label == max(
            prediction.scores, key=prediction.scores.get
        )
    command = ["evaluate", str(out / "model"), str(tagged / "validation"), "--column", "label=label"]
    assert run_command(lambda: main(command)) == 2  # one class a row is not what this model was trained on


def test_scores_of_several_classes_equal_scikit_learn():
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(300, 6)).astype(np.float32)
    true = (generator.uniform(size=(300, 6)) < [0.5, 0.2, 0.05, 0.3, 0.01, 0]).astype(np.float32)
    logits += 1.5 * true - 0.5
    numbers = multi_label_scores(torch.from_numpy(logits), torch.from_numpy(true), threshold=0.4)
    probabilities, occurs = 1 / (1 + np.exp(-logits)), true.any(0)
    said = probabilities >= 0.4
    ap = average_precision_score(true[:, occurs], probabilities[:, occurs], average=None)
    assert not occurs[5] and numbers["mean_average_precision"] == pytest.approx(ap.mean(), abs=1e-6)
    assert numbers["micro_f1"] == pytest.approx(f1_score(true, said, average="micro"))
    assert numbers["macro_f1"] == pytest.approx(f1_score(true[:, occurs], said[:, occurs], average="macro"))
    rows = per_label(torch.from_numpy(logits), torch.from_numpy(true), list("abcdef"), threshold=0.4)
    assert [row["average_precision"] for row in rows] == pytest.approx([*ap, 0.0], abs=1e-6)
    assert rows[5]["images"] == 0 and rows[5]["precision"] == 0.0


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixtures_are_a_pure_function_of_pairs(mixup, cutmix):
    mixing = Mixing(mixup, cutmix, seed=3)
    images, ids = torch.rand(64, 3, 24, 20), torch.arange(64) % 4
    targets = F.one_hot(ids, 4).float()
    rows, passes = np.arange(64) * 7, np.full(64, 2)
    mixed, shares = mixing(images, targets, passes=passes, row_ids=rows)
    # what a rank of four sees of the batch is what one process sees of it
    parts = [slice(start, start + 16) for start in range(0, 64, 16)]
    of_ranks = [mixing(images[p], targets[p], passes=passes[p], row_ids=rows[p]) for p in parts]
    assert torch.equal(torch.cat([part[0] for part in of_ranks]), mixed)
    # both of a pair together are the pair, and targets are the shares of the pixels
    pairs = mixed.view(32, 2, 3, 24, 20)
    torch.testing.assert_close(pairs.sum(1), images.view(32, 2, 3, 24, 20).sum(1))
    torch.testing.assert_close(shares.sum(1), torch.ones(64))
    own = mixing.own_fractions(passes[::2], rows[::2], 24, 20)
    told = own.mean((1, 2))
    differing = (ids[::2] != ids[1::2]).numpy()
    assert shares[::2][differing, ids[::2][differing]].numpy() == pytest.approx(told[differing], abs=1e-6)
    is_box = np.isin(own, (0.0, 1.0)).all((1, 2))
    assert is_box.mean() == (0 if not cutmix else 1 if not mixup else pytest.approx(0.5, abs=0.25))
    assert told.std() > 0.1
    other, _ = mixing(images, targets, passes=passes + 1, row_ids=rows)
    assert not torch.equal(other, mixed)
    odd, _ = mixing(images[:3], targets[:3], passes=passes[:3], row_ids=rows[:3])
    assert torch.equal(odd[2], images[2]) and torch.equal(odd[:2], mixed[:2])


def test_the_loss_weighs_classes_equally_and_equals_pseudo_code():
    torch.manual_seed(0)
    weights = torch.tensor([0.5, 1.0, 3.0])
    model = Classifier(
        build_encoder("convattn_classic", dim=8), num_classes=3, class_weights=weights, label_smoothing=0.1
    )
    torch.nn.init.normal_(model.head.weight)
    images, ids = torch.rand(6, 3, 8, 8), torch.tensor([0, 0, 0, 1, 1, 2])
    logits = model.logits(images)
    logs = logits.log_softmax(1)
    smooth = F.one_hot(ids, 3) * 0.9 + 0.1 / 3
    expected = -(smooth * weights * logs).sum(1).mean()
    torch.testing.assert_close(model((images, ids)).loss, expected)
    # so halves of a batch average to the whole
    halves = (model((images[:3], ids[:3])).loss + model((images[3:], ids[3:])).loss) / 2
    torch.testing.assert_close(halves, expected)


def test_few_labels_rare_classes_and_mixtures_in_a_run(world, tmp_path, capsys):
    common = {"training.steps": 2, "training.batch_size_global": 8}
    run(world, tmp_path / "few", label_fraction=0.25, **common)
    assert "16 chosen images" in capsys.readouterr().out
    more = {"classification.mixup": 0.2, "classification.cutmix": 1.0, "classification.balance": "sampling"}
    run(world, tmp_path / "mixed", labels_per_class=5, **more, **common)
    assert "10 chosen images" in capsys.readouterr().out


def test_the_head_may_see_the_whole_map(world, tmp_path):
    more = {
        "encoder": "random",
        "architecture.name": "convattn_classic",
        "architecture.arguments": "{dim: 16}",
    }
    more |= {
        "classification.head": "flattened",
        "image_size": 16,
        "optimizer.learning_rate": 0.03,
    }
    result = run(world, tmp_path / "run", **more)
    assert result["metrics"]["accuracy"] > 0.8
    model = load_model(result["model"]).model
    assert model.head.in_features == 16 * 8 * 8
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(
        model.position_logits(images).mean((2, 3)), model.logits(images), rtol=1e-4, atol=1e-4
    )


def test_training_ends_when_patience_does_and_a_resumed_run_remembers(world, tmp_path):
    more = {
        "patience": 2,
        "optimizer.learning_rate": 0.0,
        "evaluate_every_epochs": 1,
        "best_metric": "validation_loss",
    }
    first = run(world, tmp_path / "whole", **more)
    # nothing is learnt, so the first evaluation stays the best one
    assert first["best_metric"] == "validation_loss" and (first["best_step"], first["steps"]) == (4, 12)
    with cut_off_after(10):  # between the second evaluation and the third
        assert run_command(lambda: main(arguments(world, tmp_path / "cut", **more))) == 130
    second = run(world, tmp_path / "cut", **more)
    assert (second["best_step"], second["steps"], second["restarts"]) == (4, 12, 1)
    assert second["metrics"] == first["metrics"]


def test_the_lowest_loss_is_the_best(world, tmp_path):
    result = run(world, tmp_path / "run", evaluate_every_epochs=1, best_metric="validation_loss")
    losses = {
        line["step"]: line["validation_loss"]
        for line in lines(tmp_path / "run")
        if "validation_loss" in line
    }
    assert len(losses) == 8 and result["best_step"] == min(losses, key=losses.get)


def evaluated(model_url, data_url):
    """On a rank: the numbers of a model over a data set."""
    predictor = load_model(model_url)
    shards = Shards(load_manifest(data_url), image_column="image", columns=["label"])
    with local_context() as here:
        context = dataclasses.replace(here, rank=distributed.rank(), world_size=distributed.world_size())
        evaluation = predictor.evaluate(shards, context)
    return evaluation.metrics, evaluation.details


def test_two_ranks_evaluate_as_one(world, tmp_path):
    model, data = run(world, tmp_path / "run", **{"training.epochs": 2})["model"], str(world / "validation")
    metrics, details = evaluated(model, data)
    assert details["validation_images"] == 40
    for of_rank in run_on_ranks(evaluated, 2, model, data):
        assert of_rank[1] == details
        assert of_rank[0] == pytest.approx(metrics, abs=1e-6)
