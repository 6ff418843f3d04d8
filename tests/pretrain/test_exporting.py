"""Exported folders load the way their cards say, without Fovea where they say so, and compute the same."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from cluster.errors import UserError, run_command
from pretrain.__main__ import main
from pretrain.encoders import build_encoder, load_encoder, pooled, save_encoder

SETTINGS = "data: {url: my/<b>shards</b>}\nknn: {test_url: null}\nseed: 0\n"
RESULT = {"metrics": {"knn_accuracy": 0.71234}, "samples_seen": 12800, "bad_rows": 3}

# loads an exported folder with transformers in a process that cannot import Fovea,
# and saves what it computes
STRANGER = """
import sys
for name in ("cluster", "pretrain", "finetune"):
    sys.modules[name] = None
import numpy as np, torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification
folder, auto, inputs, output = sys.argv[1:]
model = {"AutoModel": AutoModel, "AutoModelForImageClassification": AutoModelForImageClassification}[auto]
model, loading = model.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not any(loading.values()), loading
processor = AutoImageProcessor.from_pretrained(folder)
assert tuple(processor.image_mean) and processor.size["shortest_edge"] >= processor.crop_size["height"] > 0
with torch.no_grad():
    given = model.eval()(torch.from_numpy(np.load(inputs)))
labels = list((model.config.id2label or {}).values())
kept = {"logits": given.logits, "labels": np.array(labels)} if "logits" in given else {
    "pooled": given.pooler_output, **{f"map{i}": m for i, m in enumerate(given.hidden_states)}}
np.savez(output, **{key: np.asarray(value) for key, value in kept.items()})
"""


def by_transformers(folder, auto, images, tmp_path):
    """What transformers computes with a folder, in a process of its own without Fovea."""
    np.save(tmp_path / "images.npy", images.numpy())
    arguments = [str(folder), auto, str(tmp_path / "images.npy"), str(tmp_path / "given.npz")]
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(tmp_path / "given.npz", allow_pickle=False))


def a_run(folder, name="convattn_nano", size=32, **arguments):
    """A run folder with an encoder of random weights."""
    torch.manual_seed(0)
    if name == "convattn_nano":
        arguments = {"stem_stride": 2, **arguments}
    save_encoder(
        build_encoder(name, **arguments),
        str(folder / "encoder"),
        input_size=size,
        method="simclr",
        samples_seen=9,
    )
    (folder / "settings.yaml").write_text(SETTINGS)
    (folder / "result.json").write_text(json.dumps(RESULT))
    return str(folder / "encoder")


def export(encoder, out, form):
    assert run_command(lambda: main(["export", encoder, str(out), "--format", form])) == 0
    assert not [path for path in out.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    header, _, body = (out / "README.md").read_text().removeprefix("---\n").partition("---\n")
    return yaml.safe_load(header), body


def outputs_of(encoder_url, images):
    with torch.no_grad():
        maps = load_encoder(encoder_url).eval()(images)
    return [*maps, pooled(maps)]


@pytest.mark.parametrize(
    ("options", "free"),
    [
        ({}, False),
        pytest.param({"max_keys": 0}, True, marks=pytest.mark.slow),
        pytest.param({"max_keys": 0, "attention": "hard", "top_k": 3}, True, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_onnx_computes_the_same_for_every_batch_and_where_it_can_every_size(options, free, tmp_path, capsys):
    import onnxruntime

    size = 32 if free else 50  # any size that it was trained at, be it no multiple of a stride
    encoder = a_run(tmp_path, size=size, **options)
    _, card = export(encoder, tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    assert [output.name for output in session.get_outputs()] == ["map1", "map2", "map3", "map4", "features"]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for shape in [
        (1, 3, size, size),
        (7, 3, size, size),
        *([(2, 3, 80, 48), (1, 3, 224, 224)] if free else []),
    ]:
        images = torch.rand(shape)
        given = session.run(None, {"images": images.numpy()})
        for a, b in zip(given, outputs_of(encoder, (images - mean) / std), strict=True):
            np.testing.assert_allclose(a, b.numpy(), atol=1e-4)
    said = capsys.readouterr().out
    assert ("the size is fixed to 50 x 50: it was trained at this size" in said) != free
    assert ("any multiple of 16" if free else "50 x 50") in card
    assert "answers of onnxruntime and of Fovea to 16 drawn images of odd sizes: largest difference" in said
    if not free:
        with pytest.raises(Exception, match="Expected: 50"):
            session.run(None, {"images": torch.rand(1, 3, 64, 64).numpy()})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:resnet18", "timm:vit_tiny_patch16_224", "convattn_classic"])
def test_onnx_of_other_networks(name, tmp_path):
    encoder = a_run(tmp_path, name)
    export(encoder, tmp_path / "out", "onnx")
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about["largest difference"] <= 1e-4 and (
        name == "convattn_classic" or about["size"].startswith("any")
    )


def test_check_exports_into_memory_alone(tmp_path, capsys):
    told = ["export", a_run(tmp_path), str(tmp_path / "out"), "--format", "timm", "--check"]
    assert run_command(lambda: main(told)) == 0
    said = capsys.readouterr().out
    assert "model.safetensors: " in said and "README.md: " in said and "nothing was written" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # an export proves the same of the folder that it writes
def test_a_hugging_face_folder_needs_no_fovea(tmp_path):
    encoder = a_run(tmp_path)
    header, card = export(encoder, tmp_path / "out", "huggingface")
    images = torch.randn(2, 3, 32, 48)
    given = by_transformers(tmp_path / "out", "AutoModel", images, tmp_path)
    *maps, features = outputs_of(encoder, images)
    np.testing.assert_allclose(given["pooled"], features, atol=1e-5)
    for number, wanted in enumerate(maps):
        np.testing.assert_allclose(given[f"map{number}"], wanted, atol=1e-5)
    assert header["library_name"] == "transformers" and header["pipeline_tag"] == "image-feature-extraction"
    # filled from the run, and what looks like HTML there stays text
    assert "| knn accuracy | 0.7123 |" in card and "12,800" in card and "| method | simclr |" in card
    assert "my/&lt;b&gt;shards&lt;/b&gt;" in card and "<b>" not in card
    with pytest.raises(UserError, match="is not empty"):
        main(["export", encoder, str(tmp_path / "out"), "--format", "timm"])


def test_a_timm_folder_of_the_family(tmp_path):
    import timm

    import pretrain.exporting.timm_models

    assert "convattn_nano" in timm.list_models() and pretrain.exporting.timm_models
    encoder = a_run(tmp_path, attention="hard")
    export(encoder, tmp_path / "out", "timm")
    images = torch.randn(2, 3, 32, 48)
    *maps, features = outputs_of(encoder, images)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images), features)
        pyramid = timm.create_model(
            f"local-dir:{tmp_path / 'out'}", pretrained=True, features_only=True
        ).eval()
        for given, wanted in zip(pyramid(images), maps, strict=True):
            torch.testing.assert_close(given, wanted)
    assert pyramid.feature_info.reduction() == [2, 4, 8, 16]
    more = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=5)
    assert more(images).shape == (2, 5)


@pytest.mark.parametrize(
    "name",
    [
        "timm:resnet18",
        pytest.param("timm:vit_tiny_patch16_224", marks=pytest.mark.slow),
        pytest.param("timm:convnext_atto", marks=pytest.mark.slow),
        pytest.param("timm:mobilevit_xxs", marks=pytest.mark.slow),
    ],
)
def test_a_timm_folder_of_timms_own_needs_timm_alone(name, tmp_path):
    import timm

    encoder = a_run(tmp_path, name, size=64)
    _, card = export(encoder, tmp_path / "out", "timm")
    assert "features_only=True" in card and "timm_models" not in card
    images = torch.randn(2, 3, 64, 64)
    pyramid = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, features_only=True).eval()
    with torch.no_grad():
        given = pyramid(images)
    for a, b in zip(given, outputs_of(encoder, images)[:-1], strict=True):
        torch.testing.assert_close(a, b)
