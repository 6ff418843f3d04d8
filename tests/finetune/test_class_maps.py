"""What speaks for a class: the maps against closed forms, and `explain` of a model."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.errors import UserError, run_command
from finetune.__main__ import main
from finetune.class_maps import grad_cam, integrated_gradients
from finetune.explain import explain
from finetune.model import save_model
from finetune.tasks.classification.model import Classifier
from pretrain.encoders import Encoder, build_encoder

NAMES = ["<script>cat</script>", "dog", "newt", "owl"]


def a_classifier(mode):
    torch.manual_seed(0)
    model = Classifier(build_encoder("convattn_nano", stem_stride=2), num_classes=4, mode=mode)
    torch.nn.init.normal_(model.head.weight)
    if mode == "linear":
        model.norm.running_var.fill_(4.0)
    return model


@pytest.fixture(scope="module")
def model_url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = a_classifier("linear")
    config = {
        "task": "classification",
        "mode": "linear",
        "encoder": model.encoder.spec,
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
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(
        buffer, "PNG"
    )
    (folder / "a.png").write_bytes(buffer.getvalue())
    return folder


@pytest.mark.parametrize("mode", ["full", "linear"])
def test_grad_cam_is_what_each_position_adds_to_the_logit(mode):
    model = a_classifier(mode).eval()
    images, classes = torch.randn(3, 3, 48, 32), torch.tensor([2, 0, 2])
    heat = grad_cam(model, images, classes)
    with torch.no_grad():
        last = model.encoder(images)[-1]
        weights = model.head.weight[classes] / (
            2.0 if mode == "linear" else 1.0
        )  # the frozen mode divides by deviations
        wanted = torch.einsum("bchw,bc->bhw", last, weights).relu() / last[0, 0].numel()
    assert wanted.max() > 0
    torch.testing.assert_close(heat, wanted, atol=1e-4, rtol=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_integrated_gradients_of_a_linear_model_are_its_terms():
    class Itself(Encoder):
        channels, strides, in_channels, num_layers = (3,), (1,), 3, 1
        spec = {"name": "itself", "arguments": {}}  # noqa: RUF012

        def forward(self, images_BCHW):
            return [images_BCHW]

    model = Classifier(Itself(), num_classes=2)
    images = torch.randn(2, 3, 4, 5)
    terms = torch.einsum("bchw,c->bhw", images, model.head.weight[1]) / 20
    torch.testing.assert_close(
        integrated_gradients(model, images, torch.tensor([1, 1])), terms.detach().abs()
    )


def test_a_model_is_explained_with_its_classes(model_url, tmp_path, capsys):
    told = [str(model_url / "model"), str(model_url / "a.png"), str(tmp_path / "out")]
    assert run_command(lambda: main(["explain", *told])) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script>" not in page and ("&lt;script&gt;cat" in page or "dog" in page)
    assert {path.stem for path in (tmp_path / "out").glob("*/*.png")} >= {"Grad-CAM", "integrated-gradients"}

    (explanation,) = explain(str(model_url / "model"), str(model_url / "a.png"), classes=["newt"])
    assert [(item.name, item.method) for item in explanation.classes] == [
        ("newt", "Grad-CAM"), ("newt", "integrated gradients"),
    ]  # fmt: skip
    (explanation,) = explain(str(model_url / "model"), str(model_url / "a.png"))
    scores = [item.score for item in explanation.classes if item.method == "Grad-CAM"]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    with pytest.raises(UserError, match="unknown class 'nwt'; did you mean 'newt'"):
        explain(str(model_url / "model"), str(model_url / "a.png"), classes=["nwt"])
