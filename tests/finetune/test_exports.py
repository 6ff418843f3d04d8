"""Exported models answer as Fovea does: of every kind, proven before anything is written."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from cluster.errors import UserError, run_command
from finetune.__main__ import main
from finetune.exporting.batched_detector import BatchedDetector
from finetune.exporting.command import open_model
from finetune.model import load_model, save_model
from finetune.tasks.detection.task import Detection
from finetune.tasks.summarization.task import Summarization
from finetune.tasks.summarization.tokenizer import CaptionTokenizer
from pretrain.encoders import build_encoder
from pretrain.exporting import proof
from pretrain.exporting.command import files_of
from pretrain.exporting.exported import SIZES, sizes_on_canvas
from tests.finetune.test_export_model import a_model

COMMON = {
    "mode": "full", "encoder_url": "random", "image_size": 64, "crop_fraction": 1.0, "mean": [0.5] * 3,
    "std": [0.25] * 3, "image_column": "image",
}  # fmt: skip
HEADS = ("fcos", "retinanet", "faster_rcnn")


def a_detector(folder, head):
    """A detector of random weights that finds many overlapping boxes."""
    torch.manual_seed(1)
    encoder = build_encoder("convattn_nano", stem_stride=2)
    anchors = [[[side, side], [side * 1.5, side], [side, side * 1.5]] for side in (8.0, 16.0, 32.0)]
    config = {
        **COMMON, "task": "detection", "encoder": encoder.spec, "columns": {"objects": "objects"},
        "box_format": "xywh", "class_names": ["a", "b", "c"], "class_values": ["a", "b", "c"],
        "score_threshold": 0.3, "strides": [4, 8, 16], "anchors": anchors, "head": head, "channels": 32,
        "depth": 1, "max_detections": 100, "hard_attention_keys": 0, "hard_attention_stages": 1,
    }  # fmt: skip
    model = Detection.new_model(encoder, config).eval()
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            elif "cls" in name:
                parameter.zero_()
    save_model(str(folder / head), model, config)
    return str(folder / head)


def a_summarizer(folder):
    torch.manual_seed(2)
    encoder = build_encoder("convattn_nano", stem_stride=2)
    captions = ["a red cat on a chair", "một con mèo", "two dogs run"]
    tokenizer = CaptionTokenizer.trained_on(captions * 3, vocabulary_size=300)
    config = {
        **COMMON, "task": "summarization", "encoder": encoder.spec, "columns": {"captions": "captions"},
        "keywords": ["cat", "chair", "mèo"], "keyword_names": None, "tokenizer": tokenizer.to_json(),
        "mean_tokens": 6.0, "head": {"width": 32, "depth": 1, "num_heads": 2, "num_maps": 2, "num_fed": 2,
                                     "max_tokens": 8},
        "num_beams": 2, "length_penalty": 0.6, "keyword_threshold": 0.5, "thumbnail_fraction": 0.6,
    }  # fmt: skip
    model = Summarization.new_model(encoder, config).eval()
    with torch.no_grad():
        for parameter in (*model.keywords.parameters(), *model.decoder.parameters()):
            parameter.normal_(0, 0.3)
    save_model(str(folder / "summarizer"), model, config)
    return str(folder / "summarizer")


@pytest.mark.parametrize("head", HEADS)
def test_a_whole_batch_at_once_finds_what_images_one_by_one_find(head, tmp_path):
    exported = open_model(a_detector(tmp_path, head))
    images, what = proof.proof_images(exported)
    assert len(images) == 16 and "drawn images of odd sizes" in what
    arrays, geometry = proof.framed(exported, images)
    sizes = torch.from_numpy(sizes_on_canvas(geometry, 64))
    wanted = exported.answer(arrays, geometry)
    assert (wanted["scores"] > 0).sum(1).min() > 5  # there is something to compare
    assert isinstance(exported.network, BatchedDetector)
    with torch.no_grad():
        found = exported.network(torch.from_numpy(arrays[0]).float() / 255, sizes)
    given = dict(zip(("boxes", "scores", "labels"), (one.numpy() for one in found), strict=True))
    answers = exported.answers_of(given, geometry)
    assert proof.max_difference(wanted, answers) <= 1e-4
    assert ((answers["scores"] > 0).sum(1) == (wanted["scores"] > 0).sum(1)).all()
    # the comparison sees a box in another place, and another score
    moved = {**answers, "boxes": answers["boxes"] * 0.5}
    assert proof.max_difference(wanted, moved) > 0.1
    surer = {**answers, "scores": answers["scores"] * 0.9}
    assert proof.max_difference(wanted, surer) == pytest.approx(0.1 * float(wanted["scores"].max()), rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_a_detector_as_onnx(head, tmp_path, capsys):
    import onnxruntime

    out = tmp_path / "out"
    assert (
        run_command(lambda: main(["export", a_detector(tmp_path, head), str(out), "--format", "onnx"])) == 0
    )
    assert (
        "answers of onnxruntime and of Fovea to 16 drawn images of odd sizes: largest difference"
        in capsys.readouterr().out
    )
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["images"]  # the images' sizes need not be given
    images = np.random.default_rng(0).random((3, 3, 64, 64), np.float32)
    boxes, scores, labels = session.run(None, {"images": images})
    assert boxes.shape == (3, 100, 4) and (np.diff(scores, axis=1) <= 1e-6).all()
    assert boxes.min() >= 0 and boxes.max() <= 64 and set(np.unique(labels)) <= {-1, 0, 1, 2}
    halves = np.array([[64, 32]] * 3, np.float32)
    cut, *_ = session.run(None, {"images": images, SIZES: halves})
    assert cut[..., 2].max() <= 32
    about = json.loads((out / "config.json").read_text())
    assert "upper left corner" in about["preprocessing"]["steps"][1] and SIZES in about["optional_inputs"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fcos", "faster_rcnn", "summarizer"])
def test_detectors_and_summarizers_for_transformers(kind, tmp_path, capsys):
    url = a_summarizer(tmp_path) if kind == "summarizer" else a_detector(tmp_path, kind)
    out = tmp_path / "out"
    assert run_command(lambda: main(["export", url, str(out), "--format", "huggingface"])) == 0
    said = capsys.readouterr().out
    assert "answers of transformers and of Fovea to the same pixels: largest difference" in said
    card = (out / "README.md").read_text()
    if kind == "summarizer":
        from transformers import AutoTokenizer

        predictor = load_model(url)
        tokenizer = AutoTokenizer.from_pretrained(str(out))
        for text in ("a red cat", "một con mèo", "never seen 猫"):
            ids = [1, *predictor.tokenizer.ids(text), 2, 0]
            assert tokenizer(text)["input_ids"] == ids[1:-2]
            assert (
                tokenizer.decode(ids, skip_special_tokens=True).strip()
                == predictor.tokenizer.text(ids)
                == text
            )
        assert "model.generate" in card
        assert run_command(lambda: main(["export", url, str(tmp_path / "o"), "--format", "onnx"])) == 2
        assert "--format huggingface takes it" in capsys.readouterr().err
    else:
        assert "post_process_object_detection" in card
        config = json.loads((out / "config.json").read_text())
        assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}


def test_the_processor_looks_where_predict_looks(tmp_path):
    exported = open_model(a_model(tmp_path, "full"))
    from pretrain.exporting.hugging_face import hugging_face_files

    files = hugging_face_files(exported)
    processor = json.loads(files["preprocessor_config.json"])
    assert processor["size"] == {"shortest_edge": 37} and processor["crop_size"] == {
        "height": 32,
        "width": 32,
    }
    assert processor["do_center_crop"] and processor["image_mean"] == [0.5] * 3
    assert (
        b"from .base import" in files["building.py"] and b"import pretrain" not in files["modeling_fovea.py"]
    )


@pytest.mark.slow
def test_an_export_that_answers_otherwise_is_refused(tmp_path):
    exported = open_model(a_model(tmp_path, "full"))
    squashed = dataclasses.replace(exported, framing=dataclasses.replace(exported.framing, kind="stretch"))
    answer = exported.answer

    def shifted(arrays, geometry):
        return {"probabilities": answer(arrays, geometry)["probabilities"] * 0.5}

    for wrong in (squashed, dataclasses.replace(exported, answer=shifted)):
        with pytest.raises(UserError, match=r"differ by .* nothing was written"):
            files_of(wrong, "huggingface")


def test_what_lies_apart_is_told():
    assert "largest difference 0.01" in proof.check("answers", 0.01, 0.1)
    for difference in (0.2, float("nan")):
        with pytest.raises(UserError, match="nothing was written"):
            proof.check("answers", difference, 0.1)
    rows = {"tokens": np.array([[1, 5, 2, 0]])}
    assert proof.max_difference(rows, {"tokens": np.array([[1, 5, 2]])}) == 0
    assert proof.max_difference(rows, {"tokens": np.array([[1, 5, 4, 2]])}) > 0


def test_a_classifier_on_timms_own_network_is_timms_own(tmp_path):
    import timm

    url = a_model(tmp_path, "linear", "timm:resnet18", in_channels=3)
    files, lines = files_of(open_model(url), "timm")
    assert any(
        "answers of timm and of Fovea to the same pixels: largest difference" in line for line in lines
    )
    out = tmp_path / "out"
    out.mkdir()
    for name, content in files.items():
        (out / name).write_bytes(content)
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), load_model(url).model.logits(images), atol=1e-4, rtol=1e-4)
    assert model.pretrained_cfg["crop_pct"] == 0.875 and "features_only" not in files["README.md"].decode()


@pytest.mark.parametrize("form", ["timm", "onnx"])
def test_a_head_that_lays_the_map_flat(form, tmp_path):
    torch.manual_seed(0)
    from finetune.tasks.classification.task import Classification

    encoder = build_encoder("convattn_nano", stem_stride=2)
    config = {
        **COMMON, "task": "classification", "encoder": encoder.spec, "image_size": 32,
        "columns": {"label": "label"}, "class_names": ["a", "b"], "class_values": ["a", "b"],
        "head": "flattened",
    }  # fmt: skip
    model = Classification.new_model(encoder, config).eval()
    save_model(str(tmp_path / "model"), model, config)
    exported = open_model(str(tmp_path / "model"))
    if form == "timm":
        with pytest.raises(UserError, match="flatten the last map"):
            files_of(exported, form)
    else:
        assert exported.fixed_size and exported.hugging_face.config["grid"] == [2, 2]
