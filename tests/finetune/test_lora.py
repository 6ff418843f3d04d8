"""Adapters: what learns and what is saved, a model that finds its encoder again,
merging into a whole one.
"""

import json
import shutil
from importlib.util import find_spec

import pytest
import safetensors.torch
import torch

from cluster.errors import UserError, run_command
from finetune.__main__ import main
from finetune.adapting import adapt, fingerprint, layers_to_adapt, merge
from finetune.model import load_model
from finetune.settings import LoraSettings
from pretrain.encoders import build_encoder, load_encoder, save_encoder
from tests.finetune.stripes import arguments, cut_off_after, stripes

# looked for, not imported: it takes seconds, and each process that runs tests loads all files
pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")
LORA = {"mode": "lora", "lora.rank": 2, "optimizer.learning_rate": 0.05, "training.epochs": 12}


@pytest.fixture(scope="module")
def adapted(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("lora") / "run"
    assert run_command(lambda: main(arguments(world, out, **LORA))) == 0
    return out


@pytest.mark.parametrize(
    ("name", "arguments", "side"),
    [
        ("convattn_nano", {"stem_stride": 2}, 32),
        ("convattn_nano", {"norm": "batch", "attention": "hard"}, 32),
        ("convattn_classic", {}, 16),
        ("timm:resnet18", {"pretrained": False}, 32),
        ("timm:vit_tiny_patch16_224", {"pretrained": False}, 32),
        ("timm:convnext_atto", {"pretrained": False}, 32),
        ("timm:tf_mobilenetv3_small_minimal_100", {"pretrained": False}, 32),
    ],
)
def test_adapters_learn_alone_and_merge_into_the_same_network(name, arguments, side):
    torch.manual_seed(0)
    encoder = build_encoder(name, **arguments).eval()
    for parameter in encoder.parameters():
        if parameter.ndim == 1:  # fresh networks silence their branches by a gain of zero
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    images = torch.randn(2, 3, side, side)
    before, weights = encoder(images), {key: value.clone() for key, value in encoder.state_dict().items()}
    adapt(encoder, LoraSettings(rank=2, alpha=3.0))
    assert all(torch.equal(a, b) for a, b in zip(encoder(images), before, strict=True))

    learning = {key: p for key, p in encoder.named_parameters() if p.requires_grad}
    assert learning and all(".lora_" in key for key in learning)
    with torch.no_grad():
        for key, parameter in learning.items():
            if "lora_B" in key:
                parameter.normal_(std=0.05)
    sum(m.square().mean() for m in encoder(images)).backward()
    silent = [key for key, p in learning.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
    after = encoder(images)
    assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(after, before, strict=True))

    merge(encoder)
    assert encoder.state_dict().keys() == weights.keys()
    for a, b in zip(encoder(images), after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    changed = {
        key.removesuffix(".weight")
        for key, w in weights.items()
        if not torch.equal(w, encoder.state_dict()[key])
    }
    assert changed == set(layers_to_adapt(build_encoder(name, **arguments)))


def test_the_folder_holds_adapters_and_head_and_predicts_as_evaluated(world, adapted):
    result = json.loads((adapted / "result.json").read_text())
    config = json.loads((adapted / "model" / "config.json").read_text())
    tensors = safetensors.torch.load_file(adapted / "model" / "model.safetensors")
    assert result["metrics"]["accuracy"] > 0.85
    assert config["encoder_url"] == str(world / "encoder") and config["lora"]["rank"] == 2
    assert all(".lora_" in name or name.startswith("head.") for name in tensors)
    whole = sum(t.numel() for t in load_encoder(str(world / "encoder")).state_dict().values())
    assert sum(t.numel() for t in tensors.values()) < whole / 40

    model = load_model(str(adapted / "model"))
    labelled = [stripes(number) for number in range(100, 140)]
    predictions = model.predict([image for image, _ in labelled])
    right = sum(p.label == label for p, (_, label) in zip(predictions, labelled, strict=True))
    assert right / 40 == result["metrics"]["accuracy"]
    assert fingerprint(load_encoder(str(world / "encoder"))) == config["lora"]["encoder_sha256"]


def test_cut_off_and_continued_equals_undisturbed_with_adapters_too(world, adapted, tmp_path):
    out = tmp_path / "cut"
    with cut_off_after(22):
        assert run_command(lambda: main(arguments(world, out, **LORA))) == 130
    assert run_command(lambda: main(arguments(world, out, **LORA))) == 0
    first, second = (safetensors.torch.load_file(o / "model" / "model.safetensors") for o in (adapted, out))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    results = [json.loads((o / "result.json").read_text()) for o in (adapted, out)]
    assert results[0]["metrics"] == results[1]["metrics"] and results[1]["restarts"] == 1


def test_an_encoder_that_is_gone_or_another_and_a_model_that_needs_none(world, adapted, tmp_path, capsys):
    moved, model = tmp_path / "moved", tmp_path / "model"
    shutil.copytree(world / "encoder", moved)
    shutil.copytree(adapted / "model", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"encoder_url": str(tmp_path / "gone")}))
    with pytest.raises(UserError, match=r"gone, which cannot be loaded.*merge MODEL DEST --encoder URL"):
        load_model(str(model))
    save_encoder(build_encoder("convattn_nano", stem_stride=2), str(tmp_path / "gone"), input_size=32)
    with pytest.raises(UserError, match="has different weights from those this model was adapted"):
        load_model(str(model))

    dest = tmp_path / "whole"
    assert run_command(lambda: main(["merge", str(model), str(dest), "--encoder", str(moved)])) == 0
    shutil.rmtree(moved)
    image = stripes(3)[0]
    whole, beside = load_model(str(dest)), load_model(str(adapted / "model"))
    assert whole.predict(image)[0].scores == pytest.approx(beside.predict(image)[0].scores, abs=1e-6)
    capsys.readouterr()
    assert run_command(lambda: main(["merge", str(dest), str(tmp_path / "again")])) == 2
    assert "is a stand-alone model already" in capsys.readouterr().err
    assert run_command(lambda: main(["merge", str(model), str(dest)])) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_adapters_of_random_weights_are_refused(world, tmp_path, capsys):
    options = arguments(world, tmp_path / "out", mode="lora", encoder=f"random:{world / 'encoder'}")
    assert run_command(lambda: main(options)) == 2
    assert "adapters need weights that can be loaded again" in capsys.readouterr().err
