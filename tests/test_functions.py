"""What the commands do, from Python: the same settings, the same flow, one line for a user's mistake."""

import json
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest

import finetune
import pretrain
from cluster.calling import short_names
from cluster.settings import load_settings
from finetune.api import FinetuneKeywords
from finetune.settings import FinetuneSettings
from pretrain.api import PretrainKeywords
from pretrain.settings import PretrainSettings
from tests.finetune.stripes import stripes
from tests.pretrain.shards import photo, write_shards

TINY = {
    "encoder.arguments": {"stem_stride": 2},
    "training.warmup_epochs": 0,
    "training.log_every_steps": 1,
    "cluster.cpus_per_worker": 1,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images in class folders."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(40):
        data, _ = stripes(number)
        place = folder / ("across" if number % 2 else "down")
        place.mkdir(exist_ok=True)
        (place / f"{number}.jpg").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def shards(photos, tmp_path_factory):
    return pretrain.import_images(photos, tmp_path_factory.mktemp("made") / "shards", validation=0.3)


@pytest.fixture(scope="module")
def encoder(shards, tmp_path_factory):
    return pretrain.pretrain(
        shards.train,
        out=tmp_path_factory.mktemp("encoder") / "run",
        method="simclr",
        method_arguments={"hidden_dim": 32},
        encoder="convattn_nano",
        image_size=32,
        batch_size=8,
        steps=2,
        workers=0,
        report_images=0,
        settings=TINY,
    )


@pytest.fixture(scope="module")
def model(shards, encoder, tmp_path_factory):
    return finetune.finetune(
        shards.train,
        validation=shards.validation,
        encoder=encoder.encoder,
        out=str(tmp_path_factory.mktemp("model") / "run"),
        compare=[],
        batch_size=8,
        steps=2,
        workers=0,
        report_images=0,
        settings={"training": {"warmup_epochs": 0}, "cluster.cpus_per_worker": 1},
    )


def test_an_import_tells_where_its_shards_are(shards):
    assert shards.train.endswith("shards/train") and shards.validation.endswith("shards/validation")
    assert shards.test is None and shards.summary["images"] == 40


def test_check_returns_the_report_of_the_command(shards):
    assert pretrain.check(shards.train, rows="all")["rows"] == 40 - pretrain.check(shards.validation)["rows"]


def test_pretraining_leaves_what_it_says(encoder):
    result = json.loads(Path(encoder.out, "result.json").read_text())
    assert encoder.result == result and encoder.metrics == result["metrics"] and encoder.metrics
    assert "<html" in Path(encoder.report).read_text()
    assert encoder.load_encoder().channels[-1] == pretrain.load_encoder(encoder.encoder).channels[-1]


def test_the_same_call_says_that_the_run_is_finished(encoder, shards, capsys):
    again = pretrain.pretrain(
        shards.train, out=encoder.out, method="simclr", method_arguments={"hidden_dim": 32},
        encoder="convattn_nano",
        image_size=32, batch_size=8, steps=2, workers=0, report_images=0, settings=TINY,
    )  # fmt: skip
    assert "is finished already" in capsys.readouterr().out and again == encoder


def test_a_model_predicts_and_is_evaluated(model, shards, photos, tmp_path):
    assert model.comparison == [] and 0 <= model.metrics["accuracy"] <= 1
    image = photos / "down" / "0.jpg"
    assert model.load_model().predict(str(image))[0].label in ("across", "down")
    scores = finetune.evaluate(model.model, shards.validation)
    assert scores.metrics["accuracy"] == pytest.approx(model.metrics["accuracy"])
    kept = list(finetune.predict(model.model, [image]))
    written = finetune.predict(model.model, image, tmp_path / "out")
    assert len(written) == len(kept) == 1 and written.num_bad == 0
    assert [record["label"] for record in written] == [record["label"] for record in kept]
    assert finetune.load_model(model.model).config["weights_sha256"]


def test_embedding_counts_bad_rows(encoder, tmp_path):
    images = [photo(number, side=16) for number in range(5)]
    url = write_shards(tmp_path / "data", [*images, b"no image"])
    features = pretrain.embed(encoder.encoder, url, tmp_path / "features")
    assert (features.num_images, features.num_bad) == (5, 1)
    assert (tmp_path / "features" / "features.json").exists()


@pytest.mark.parametrize(
    ("function", "given", "words"),
    [
        (pretrain.pretrain, {"epoch": 3}, ["pretrain() takes no 'epoch'", "did you mean 'epochs'",
                                           "dotted key"]),
        (pretrain.pretrain, {"epochs": "ten"}, ["training.epochs='ten'", "must be a number"]),
        (pretrain.pretrain, {"settings": {"training.epoch": 3}},
         ["unknown setting 'training.epoch'", "training.epochs"]),
        (pretrain.pretrain, {"settings": {"training.epochs": object()}}, ["training.epochs"]),
        (pretrain.pretrain, {"config": "configs/pretrain/simcrl.yaml"}, ["does not exist", "simclr.yaml"]),
        (pretrain.pretrain, {"out": None}, ["the setting out has no value"]),
        (pretrain.pretrain, {}, ["nowhere"]),
        (finetune.finetune, {"encoder": "nowhere/encoder", "validation": "nowhere"}, ["nowhere"]),
        (finetune.finetune, {"encoder": "random", "validation": "x", "mode": "half"},
         ["mode='half'", "linear, full, lora"]),
    ],
)  # fmt: skip
def test_a_mistake_in_settings_is_one_line(function, given, words, tmp_path):
    with pytest.raises(pretrain.UserError) as caught:
        function("nowhere", **{"out": tmp_path / "out", **given})
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text and all(word in text for word in words), text
    assert caught.value.__cause__ is None and caught.value._render_traceback_() == [f"UserError: {text}"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pretrain.import_images("nowhere", "there"), ["nowhere"]),
        (
            lambda: pretrain.import_images("a", "b", validate=0.2),
            ["takes no 'validate'", "did you mean 'validation'"],
        ),
        (
            lambda: pretrain.import_images("a", "b", drop_duplicates=3),
            ["drop_duplicates=3", "True or False"],
        ),
        (lambda: pretrain.import_images("a", "b", check=True), ["--check"]),
        (lambda: pretrain.check("nowhere"), ["nowhere"]),
        (lambda: pretrain.embed("nowhere", "here", "out"), ["here"]),
        (lambda: finetune.predict("nowhere", ["a.jpg"]), ["a.jpg"]),
        (lambda: finetune.predict("nowhere", [3]), ["3 is not possible"]),
        (lambda: finetune.predict("m", "a.jpg", every="often"), ["--every", "often"]),
        (lambda: finetune.evaluate("nowhere", "here"), ["nowhere"]),
        (lambda: finetune.load_model("nowhere"), ["nowhere"]),
        (lambda: pretrain.load_encoder("nowhere"), ["nowhere"]),
    ],
)
def test_a_mistake_in_options_is_one_line(call, words):
    with pytest.raises(finetune.UserError) as caught:
        call()
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), str(
        caught.value
    )


def test_what_is_unknown_beneath_the_settings_is_one_line_too(shards, tmp_path):
    with pytest.raises(pretrain.UserError, match=r"^unknown method 'simclt'; did you mean 'simclr'"):
        pretrain.pretrain(shards.train, out=tmp_path / "out", method="simclt", batch_size=8, workers=0)


def test_an_interrupted_run_interrupts_the_caller(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.run.run", lambda *_, **__: 130)
    with pytest.raises(KeyboardInterrupt, match="the same call continues"):
        pretrain.pretrain(shards.train, out=tmp_path / "out")


def test_values_are_what_a_command_line_would_make_of_them():
    words = [
        "data.url=[a,b]",
        "out=007",
        "training.epochs=2",
        "method.name=byol",
        "encoder.arguments={top_k: 4}",
    ]
    values = {
        "data.url": ("a", "b"), "out": "007", "training": {"epochs": np.float32(2)},
        "method": {"name": "byol"}, "encoder.arguments": {"top_k": np.int64(4)},
    }  # fmt: skip
    assert load_settings(PretrainSettings, None, words) == load_settings(
        PretrainSettings, None, [], values=values
    )


@pytest.mark.parametrize(
    ("keywords", "schema"), [(PretrainKeywords, PretrainSettings), (FinetuneKeywords, FinetuneSettings)]
)
def test_short_names_are_settings_of_their_type(keywords, schema):
    hints = typing.get_type_hints(keywords)
    for name, key in short_names(keywords).items():
        kind = schema
        for part in key.split("."):
            kind = typing.get_type_hints(kind)[part]
        wanted = set(typing.get_args(kind)) - {type(None)} or {kind}
        given = set(typing.get_args(hints[name])) or {hints[name]}
        assert given & wanted or wanted == {typing.Any} or typing.get_origin(kind), (
            name,
            key,
            hints[name],
            kind,
        )


def test_importing_the_packages_imports_nothing_heavy():
    code = (
        "import pretrain, finetune, sys; print({'torch', 'ray', 'pyarrow', 'omegaconf'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "set()"
