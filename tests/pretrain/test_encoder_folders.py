"""An encoder leaves a run as safetensors and JSON, and comes back equal or with a clear error."""

import hashlib
import json

import pytest
import safetensors.torch
import torch

from cluster import storage
from cluster.errors import UserError
from pretrain.encoders import build_encoder, load_encoder, read_encoder_config, save_encoder
from pretrain.encoders.saving import load_weights_folder, save_weights_folder


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    encoder = build_encoder("convattn_nano", stem_stride=2, norm="batch")
    encoder(torch.randn(4, 3, 32, 32))  # moves the running statistics
    save_encoder(
        encoder.eval(),
        str(tmp_path / "encoder"),
        input_size=64,
        method="simclr",
        samples_seen=7,
        dataset_fingerprint="abc",
    )
    return tmp_path / "encoder", encoder


def test_saved_and_loaded_gives_equal_output(folder):
    path, encoder = folder
    images = torch.randn(2, 3, 64, 64)
    for mine, loaded in zip(encoder(images), load_encoder(str(path)).eval()(images), strict=True):
        assert torch.equal(mine, loaded)
    config = read_encoder_config(str(path))
    assert (config.name, config.input_size, config.method, config.samples_seen) == (
        "convattn_nano",
        64,
        "simclr",
        7,
    )
    assert config.channels == (24, 64, 128, 160) and config.strides == (2, 4, 8, 16)
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["convattn_classic", "timm:resnet18"])
def test_every_kind_goes_through_any_file_system(name):
    url = f"memory://encoders/{name.replace(':', '-')}"
    encoder = build_encoder(name).eval()
    save_encoder(encoder, url)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(load_encoder(url).eval()(images)[-1], encoder(images)[-1])
    storage.remove("memory://encoders")


def change_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def test_what_is_no_encoder_folder_is_said(folder, tmp_path):
    with pytest.raises(
        UserError, match=r"not an encoder or model folder: it holds no config.json \(there: encoder\)"
    ):
        load_encoder(str(tmp_path))
    path, _ = folder
    change_config(path, kind="model")
    with pytest.raises(UserError, match="is a model folder, not an encoder's"):
        load_encoder(str(path))


def test_another_format_version_is_said(folder):
    path, _ = folder
    change_config(path, format_version=7)
    with pytest.raises(UserError, match=r"config.json has format version 7, this program reads version 1"):
        load_encoder(str(path))


def test_a_damaged_file_is_said(folder):
    path, _ = folder
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 255
    weights.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"model.safetensors is damaged: its checksum"):
        load_encoder(str(path))
    weights.unlink()
    with pytest.raises(UserError, match=r"model.safetensors: it does not exist"):
        load_encoder(str(path))
    (path / "config.json").write_text('{"format_version": 1,')
    with pytest.raises(UserError, match=r"config.json is not valid JSON"):
        load_encoder(str(path))
    (path / "config.json").write_text('{"format_version": 1, "kind": "encoder"}')
    with pytest.raises(UserError, match=r"config.json is damaged: it has no 'name'"):
        read_encoder_config(str(path))


def test_keys_that_do_not_fit_are_listed_on_both_sides(folder):
    path, encoder = folder
    tensors = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    tensors["extra"] = tensors.pop("stem.0.bias")
    tensors["norm.weight"] = torch.zeros(3)
    data = safetensors.torch.save(tensors)
    (path / "model.safetensors").write_bytes(data)
    change_config(path, weights_sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(
        UserError,
        match=r"missing \['stem.0.bias'\], unexpected \['extra'\], "
        r"of another shape \['norm.weight \(3,\) instead of \(160,\)",
    ):
        load_encoder(str(path))


def test_a_header_damaged_before_it_was_signed_is_said(folder):
    path, _ = folder
    data = b"\xff" * 64
    (path / "model.safetensors").write_bytes(data)
    change_config(path, weights_sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(UserError, match=r"model.safetensors is not a valid safetensors file"):
        load_encoder(str(path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"name": "convattn_nono"},
            r"config.json does not describe an encoder of this program: unknown encoder 'convattn_nono'",
        ),
        (
            {"arguments": {"stem": 2}},
            r"config.json does not describe an encoder of this program: .*unknown argument 'stem'",
        ),
        ({"arguments": None}, r"config.json is damaged: arguments is None, not dict"),
        ({"channels": "abc"}, r"config.json is damaged: channels is 'abc', not list"),
        ({"mean": [0.5, "x"]}, r"config.json is damaged: mean is .*, not a list of numbers"),
        (
            {"strides": [4, 8, 16, 32]},
            r"config.json says strides=\(4, 8, 16, 32\), but the encoder it describes has \(2, 4",
        ),
    ],
)
def test_a_config_that_makes_no_sense_is_said(folder, changes, words):
    path, _ = folder
    change_config(path, **changes)
    with pytest.raises(UserError, match=words):
        load_encoder(str(path))


def test_a_folder_cut_off_before_its_config_is_no_encoder(folder, monkeypatch):
    path, encoder = folder
    target = str(path.parent / "cut")
    monkeypatch.setattr(storage, "write_json", lambda url, value: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_encoder(encoder, target)
    with pytest.raises(UserError, match=r"holds no config.json \(there: model.safetensors\)"):
        load_encoder(target)


def test_tied_weights_are_saved_and_a_reused_config_does_not_bring_its_checksum(tmp_path):
    url, weight = str(tmp_path / "tied"), torch.randn(3, 4)
    save_weights_folder(url, {"a": weight, "b": weight}, {"format_version": 1})
    config, tensors = load_weights_folder(url, 1)
    assert torch.equal(tensors["a"], weight) and torch.equal(tensors["b"], weight)
    save_weights_folder(url, {"a": weight + 1}, config)
    assert torch.equal(load_weights_folder(url, 1)[1]["a"], weight + 1)


def test_metadata_is_written_by_name_and_no_other(folder):
    path, encoder = folder
    with pytest.raises(TypeError, match="epochs"):
        save_encoder(encoder, str(path), epochs=3)
    save_encoder(encoder, str(path), code_version="0.1.0+abc", mean=(0.5, 0.5, 0.5))
    config = read_encoder_config(str(path))
    assert (config.code_version, config.mean, config.method) == ("0.1.0+abc", (0.5, 0.5, 0.5), None)


def test_weights_that_cannot_be_had_are_explained(monkeypatch):
    import timm

    def offline(*arguments, **options):
        raise FileNotFoundError("cannot find the requested files; check your connection")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        UserError, match=r"weights of timm:resnet18 cannot be loaded: .*connection; without internet"
    ):
        build_encoder("timm:resnet18", pretrained=True)
