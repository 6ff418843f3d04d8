"""A folder of another kind in the place of a model is called by its name."""

import json

import pytest

from cluster.errors import run_command
from finetune.__main__ import main as finetune
from pretrain.__main__ import main as pretrain
from pretrain.encoders import build_encoder, save_encoder
from tests.finetune.test_export_model import a_model
from tests.pretrain.shards import encoded, write_shards


@pytest.fixture
def places(tmp_path):
    model = a_model(tmp_path, "full")
    (tmp_path / "settings.yaml").write_text("seed: 0\n")
    save_encoder(
        build_encoder("convattn_nano", stem_stride=2), str(tmp_path / "e" / "encoder"), input_size=32
    )
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / "config.json").write_text(json.dumps({"model_type": "fovea", "auto_map": {}}))
    shards = write_shards(tmp_path / "shards", [encoded(1)])
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "settings.yaml").write_text("seed: 0\n")
    return {
        "run": (str(tmp_path), f"it is a run's folder, whose model is {model}"),
        "encoder": (str(tmp_path / "e" / "encoder"), "is an encoder folder, not a model"),
        "exported": (str(exported), "is a folder for Hugging Face, not one of Fovea's"),
        "shards": (shards, "it holds Parquet shards, which are data"),
        "unfinished": (str(tmp_path / "unfinished"), "the folder of a run that is not finished"),
        "file": (f"{model}/config.json", "it is a file"),
    }


@pytest.mark.parametrize("kind", ["run", "encoder", "exported", "shards", "unfinished", "file"])
def test_every_command_that_takes_a_model_says_what_it_got(kind, places, tmp_path, capsys):
    place, said = places[kind]
    data, out = places["shards"][0], str(tmp_path / "out")
    for command in (
        ["evaluate", place, data],
        ["predict", place, data, out],
        ["explain", place, data, out],
        ["export", place, out, "--format", "onnx"],
    ):
        assert run_command(lambda command=command: finetune(command)) == 2
        assert said in capsys.readouterr().err, command
    if kind not in ("encoder", "run"):
        assert run_command(lambda: pretrain(["explain", place, data, out])) == 2
        assert said in capsys.readouterr().err
