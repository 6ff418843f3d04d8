"""The encoders' contract, over the whole family, and the attention of its layers."""

import math

import pytest
import torch

from cluster.errors import UserError
from pretrain.encoders import build_encoder, encoder_names, pooled
from pretrain.encoders.layers import (
    ConvAttention,
    ConvolutionalAttention,
    DepthwiseConv,
    PointwiseConv,
    SeparableConvolutionalAttention,
)

FAMILY = {"convattn_nano": 0.64e6, "convattn_tiny": 5e6, "convattn_small": 25e6, "convattn_base": 50e6}
LAYERS = [ConvAttention, ConvolutionalAttention, SeparableConvolutionalAttention]
# image size -> the stem stride made for it
SIZES = {(32, 32): 1, (64, 64): 2, (96, 96): 2, (224, 224): 4, (72, 104): 2}


def fits(name, size):
    return {} if name == "convattn_classic" else {"stem_stride": SIZES[size]}


@pytest.mark.parametrize(("name", "parameters"), FAMILY.items())
def test_sizes_are_those_of_the_design(name, parameters):
    count = sum(parameter.numel() for parameter in build_encoder(name).parameters())
    assert abs(count - parameters) < 0.1 * parameters


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in ("convattn_small", "convattn_base") else n
        for n in encoder_names()
    ],
)
@pytest.mark.parametrize("attention", ["soft", "hard"])
def test_gradient_reaches_every_parameter(name, size, attention):
    torch.manual_seed(0)
    encoder = build_encoder(name, attention=attention, **fits(name, size))
    maps = encoder(torch.randn(2, 3, *size))
    assert [m.shape[1] for m in maps] == list(encoder.channels)
    for feature_map, stride in zip(maps, encoder.strides, strict=True):
        assert feature_map.shape[2:] == tuple(math.ceil(side / stride) for side in size)
    weights = torch.randn(encoder.channels[-1])
    (pooled(maps) * weights).square().sum().backward()
    silent = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 65), (31, 224)])
@pytest.mark.parametrize("stem_stride", [1, 2, 4])
def test_any_input_size_works(size, stem_stride):
    encoder = build_encoder("convattn_nano", stem_stride=stem_stride).eval()
    maps = encoder(torch.randn(1, 3, *size))
    assert all(torch.isfinite(m).all() for m in maps) and len(maps) == 4


def test_gradient_reaches_every_parameter_where_the_last_map_has_one_position():
    encoder = build_encoder("convattn_nano", stem_stride=4)
    maps = encoder(torch.randn(2, 3, 32, 32))
    assert maps[-1].shape[2:] == (1, 1)
    (pooled(maps) * torch.randn(160)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in encoder.parameters())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_stride": 2},
        {"max_keys": 9},
        {"mode": "hard", "top_k": 5},
        {"mode": "hard", "top_k": 3, "kv_stride": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(6, 6), (7, 11)], ids=str)
def test_weights_times_values_are_the_fused_output(layer, options, size):
    torch.manual_seed(0)
    attention = layer(16, 4, **options)
    x = torch.randn(3, 16, *size)
    weights, values = attention.attention_weights(x), attention.values(x)
    product = (weights @ values).transpose(2, 3).reshape(3, 16, *size)
    torch.testing.assert_close(attention.attend(*attention.project(x)), product, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    if options.get("mode") == "hard":
        keys = weights.shape[-1]
        assert ((weights > 0).sum(-1) == min(options["top_k"], keys)).all()
    if "max_keys" in options:
        assert weights.shape[-1] <= 9


def test_hard_attention_equals_a_loop_in_float64():
    torch.manual_seed(0)
    attention = ConvolutionalAttention(8, 2, mode="hard", top_k=3).double()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    queries, keys = (m.reshape(2, 2, 4, 12) for m in attention.project(x))
    wanted = torch.zeros(2, 2, 4, 12, dtype=torch.float64)
    for image in range(2):
        for head in range(2):
            q, k = queries[image, head].T, keys[image, head].T
            for position in range(12):
                scores = (k @ q[position]) / 2.0  # sqrt(d) with d = 4
                best = scores.argsort(descending=True)[:3]
                share = scores[best].exp() / scores[best].exp().sum()
                wanted[image, head, :, position] = share @ k[best]
    torch.testing.assert_close(attention(x), wanted.reshape(2, 8, 3, 4), atol=1e-12, rtol=0)


def test_conv_attention_uses_one_convolution_and_convolutional_attention_two():
    assert [name for name, _ in ConvAttention(8).named_parameters()] == ["features.weight", "features.bias"]
    assert sorted(dict(ConvolutionalAttention(8).named_parameters())) == [
        "keys.bias", "keys.weight", "queries.bias", "queries.weight",
    ]  # fmt: skip


def test_attention_maps_come_for_the_asking_and_change_nothing():
    encoder = build_encoder("convattn_nano", stem_stride=2, attention_from=3).eval()
    images = torch.randn(2, 3, 64, 64)
    before = encoder(images)[-1]
    maps = encoder.attention(images)
    assert list(maps) == ["stage3.block1", "stage3.block2", "stage3.block3", "stage4.block1"]
    assert list(build_encoder("convattn_nano").attention(images)) == ["stage4.block1"]
    assert maps["stage3.block1"].shape == (2, 4, 64, 64) and maps["stage4.block1"].shape == (2, 5, 16, 16)
    torch.testing.assert_close(encoder(images)[-1], before)
    assert list(build_encoder("convattn_classic").attention(images[:, :, :16, :16])) == ["attend"]


@pytest.mark.parametrize("name", ["convattn_nano", "convattn_tiny", "convattn_classic", "timm:resnet18"])
def test_layers_cover_every_parameter_and_rise(name):
    encoder = build_encoder(name)
    layers = [encoder.layer_of(parameter) for parameter, _ in encoder.named_parameters()]
    assert set(layers) == set(range(encoder.num_layers))
    if name.startswith("convattn"):
        assert encoder.layer_of("stem.0.weight" if name != "convattn_classic" else "conv.weight") == 0


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_drop_path_and_norms_train_and_evaluate(norm):
    encoder = build_encoder("convattn_nano", stem_stride=2, norm=norm, drop_path=0.5)
    images = torch.randn(4, 3, 32, 32)
    assert not torch.equal(encoder(images)[-1], encoder(images)[-1])
    encoder.eval()
    assert torch.equal(encoder(images)[-1], encoder(images)[-1])


@pytest.mark.parametrize(
    ("name", "stride"),
    [("resnet18", 32), ("convnext_atto", 32), ("vit_tiny_patch16_224", 16), ("mobilevit_xxs", 32)],
)
def test_timm_networks_keep_the_contract(name, stride):
    encoder = build_encoder(f"timm:{name}").eval()
    maps = encoder(torch.randn(1, 3, 224, 224))
    assert [m.shape[1] for m in maps] == list(encoder.channels)
    assert encoder.strides[-1] == stride and maps[-1].shape[2:] == (224 // stride, 224 // stride)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("convattn_nono", {}, "unknown encoder 'convattn_nono'; did you mean 'convattn_nano'"),
        ("convattn_nano", {"stem_strid": 2}, "unknown argument 'stem_strid'; did you mean 'stem_stride'"),
        ("convattn_nano", {"stem_stride": 3}, r"stem_stride=3 is not possible \(allowed: 1, 2, 4\)"),
        ("convattn_nano", {"norm": "group"}, "unknown norm 'group'"),
        ("convattn_nano", {"attention": "sofd"}, "unknown attention 'sofd'; did you mean 'soft'"),
        ("convattn_nano", {"drop_path": 1.0}, "drop_path=1.0 is not possible"),
        ("convattn_nano", {"kernel_size": 4}, "kernel_size=4 is not possible"),
        ("convattn_nano", {"stem_stride": "two"}, "stem_stride=two is not possible"),
        ("timm:resnet19", {}, "unknown timm network 'resnet19'"),
        ("timm:resnet18", {"depht": 3}, "timm:resnet18: 'depht' is not an argument"),
    ],
)
def test_impossible_encoders_are_explained(name, arguments, words):
    with pytest.raises(UserError, match=words):
        build_encoder(name, **arguments)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 5), (6, 7)])
@pytest.mark.parametrize(
    "layer", [PointwiseConv(6, 4, 1), DepthwiseConv(6, 3), DepthwiseConv(6, 7)], ids=repr
)
def test_pointwise_and_depthwise_convolutions_are_convolutions(layer, size):
    layer = layer.double()
    images = torch.randn(3, 6, *size, dtype=torch.float64, requires_grad=True)
    plain = torch.nn.functional.conv2d(
        images, layer.weight, layer.bias, padding=layer.padding, groups=layer.groups
    )
    ours = layer(images)
    assert torch.allclose(ours, plain, atol=1e-12)
    weights, inputs = torch.randn_like(plain), (images, layer.weight, layer.bias)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, weights), torch.autograd.grad(plain, inputs, weights), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-12)
