"""Classifiers for other programs."""

import json

import numpy as np
import pytest
import torch

from cluster.errors import UserError, run_command
from finetune.__main__ import main
from finetune.model import load_model, save_model
from finetune.tasks.classification.model import Classifier
from pretrain.encoders import build_encoder
from tests.pretrain.test_exporting import by_transformers

NAMES = ["<i>cat</i>", "dog | newt", "owl"]
RESULT = {"metrics": {"accuracy": 0.9}, "validation_images": 400, "samples_seen": 64, "bad_rows": 0}


def a_model(folder, mode, name="convattn_nano", **arguments):
    torch.manual_seed(0)
    arguments = arguments or {"stem_stride": 2}
    model = Classifier(build_encoder(name, **arguments), num_classes=3, mode=mode).eval()
    torch.nn.init.normal_(model.head.weight)
    if mode == "linear":
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    config = {
        "task": "classification",
        "mode": mode,
        "encoder": model.encoder.spec,
        "encoder_url": "some/encoder",
        "image_size": 32,
        "crop_fraction": 0.875,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "image_column": "image",
        "columns": {"label": "label"},
        "class_names": NAMES,
        "class_values": NAMES,
    }
    save_model(str(folder / "model"), model, config)
    (folder / "result.json").write_text(json.dumps(RESULT))
    return str(folder / "model")


def logits_of(url, images):
    with torch.no_grad():
        return load_model(url).model.logits(images).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["linear", "full"])
def test_a_classifier_by_transformers_and_timm(mode, tmp_path):
    import timm

    import pretrain.exporting.timm_models  # noqa: F401 - registers the network

    url = a_model(tmp_path, mode)
    images = torch.randn(2, 3, 32, 48)
    for form in ("huggingface", "timm"):
        assert (
            run_command(lambda form=form: main(["export", url, str(tmp_path / form), "--format", form])) == 0
        )
    given = by_transformers(tmp_path / "huggingface", "AutoModelForImageClassification", images, tmp_path)
    np.testing.assert_allclose(given["logits"], logits_of(url, images), atol=1e-5)
    assert given["labels"].tolist() == NAMES
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        np.testing.assert_allclose(model(images), logits_of(url, images), atol=1e-5)
    card = (tmp_path / "huggingface" / "README.md").read_text()
    assert "| accuracy | 0.9 |" in card and "400 validation images" in card and "about 5%" in card
    assert "&lt;i&gt;cat&lt;/i&gt;" in card and "dog \\| newt" in card and "<i>" not in card


@pytest.mark.slow
def test_a_classifier_as_onnx(tmp_path):
    import onnxruntime

    url = a_model(tmp_path, "linear", stem_stride=2, max_keys=0)
    assert run_command(lambda: main(["export", url, str(tmp_path / "out"), "--format", "onnx"])) == 0
    session = onnxruntime.InferenceSession(
        str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    images = torch.rand(3, 3, 48, 64)
    (given,) = session.run(["logits"], {"images": images.numpy()})
    np.testing.assert_allclose(given, logits_of(url, (images - 0.5) / 0.25), atol=1e-4)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["class_names"] == NAMES


@pytest.mark.slow
def test_what_timm_cannot_build_is_said(tmp_path):
    url = a_model(tmp_path, "full", "timm:convnext_atto", in_channels=3)
    with pytest.raises(UserError, match="--format huggingface takes this classifier"):
        main(["export", url, str(tmp_path / "out"), "--format", "timm"])
    assert not (tmp_path / "out").exists()
