"""Attention as maps: equal to what the fused kernel used, distributions over the image,
and rollout against a loop.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cluster.errors import UserError
from pretrain.data.images.heat_maps import heat_colours, overlay
from pretrain.encoders import build_encoder
from pretrain.encoders.attention_maps import attention_maps, attention_rollout

SOFT_AND_HARD = [
    {},
    {"kv_stride": 2},
    {"max_keys": 9},
    {"attention": "hard", "top_k": 5},
    {"attention": "hard", "top_k": 3, "kv_stride": 3, "max_keys": 0},
]
VITS = [
    ("vit_tiny_patch16_224", 1),
    ("vit_small_patch14_reg4_dinov2", 5),  # registers
    ("vit_small_patch16_dinov3", 5),  # rotary positions
    ("beit_base_patch16_224", 1),  # biases of relative positions
    ("deit_tiny_distilled_patch16_224", 2),
    ("vit_relpos_small_patch16_224", 0),
]


def recorded(encoder, images):
    """Input, options and output of each attention layer in a usual pass, through the fused kernel."""
    calls = {}

    def hook(name):
        return lambda layer, inputs, options, output: calls.update({name: (layer, inputs, options, output)})

    hooks = [
        layer.register_forward_hook(hook(name), with_kwargs=True)
        for name, layer in encoder.attention_layers().items()
    ]
    with torch.no_grad():
        encoder(images)
    for handle in hooks:
        handle.remove()
    return calls


@pytest.mark.parametrize("options", SOFT_AND_HARD, ids=str)
@pytest.mark.parametrize("name", ["convattn_nano", "convattn_classic"])
def test_weights_times_values_are_what_the_block_gave(name, options):
    torch.manual_seed(0)
    stem = {} if name == "convattn_classic" else {"stem_stride": 2, "attention_from": 2}
    encoder = build_encoder(name, **stem, **options).eval()
    images = torch.randn(2, 3, 22, 26)
    calls, attended = recorded(encoder, images), encoder.look(images)
    assert list(attended) == list(calls)
    for key, (layer, (x,), _, output) in calls.items():
        weights = attended[key].weights_BhQK
        product = (weights @ layer.values(x)).transpose(2, 3).reshape(x.shape)
        if hasattr(layer, "output"):  # the separable kind adds positions and projects
            product = layer.output(product + layer.position(layer.project(x)[0]))
        torch.testing.assert_close(product, output, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "num_extra"), [v if v in VITS[:1] else pytest.param(*v, marks=pytest.mark.slow) for v in VITS]
)
def test_a_vits_weights_times_values_are_what_the_block_gave(name, num_extra):
    torch.manual_seed(0)
    encoder = build_encoder(f"timm:{name}").eval()
    patch = encoder.strides[-1]
    fixed = name.startswith(("beit", "vit_relpos"))
    height, width = (14, 14) if fixed else (3, 4)
    images = torch.randn(1, 3, height * patch, width * patch)
    calls, attended = recorded(encoder, images), encoder.look(images)
    assert len(attended) == len(calls) == 12
    for key, (layer, (x, *_), _, output) in calls.items():
        seen = attended[key]
        assert seen.num_extra == num_extra and seen.queries_HW == (height, width)
        assert layer.fused_attn  # the pass that was recorded, and the passes to come
        bias = layer.qkv.bias
        if getattr(layer, "v_bias", None) is not None:
            bias = torch.cat([layer.q_bias, layer.k_bias, layer.v_bias])
        projected = F.linear(x, layer.qkv.weight, bias).unflatten(2, (3, layer.num_heads, -1))
        heads = seen.weights_BhQK @ projected[:, :, 2].transpose(1, 2)
        norm = getattr(layer, "norm", torch.nn.Identity())
        product = layer.proj(norm(heads.transpose(1, 2).flatten(2)))
        torch.testing.assert_close(product, output, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", SOFT_AND_HARD, ids=str)
@pytest.mark.parametrize("size", [(64, 64), (36, 50)], ids=str)
def test_maps_are_distributions_over_each_layers_positions(options, size):
    encoder = build_encoder("convattn_nano", stem_stride=2, attention_from=3, **options)
    maps = attention_maps(encoder, torch.randn(2, 3, *size))
    assert encoder.training  # as it was
    assert list(maps) == list(encoder.attention_layers())
    for name, map_BhHW in maps.items():
        stride = encoder.strides[int(name[5]) - 1]
        assert map_BhHW.shape[2:] == tuple(-(-side // stride) for side in size)
        torch.testing.assert_close(map_BhHW.sum((2, 3)), torch.ones(map_BhHW.shape[:2]))
    rolled = attention_rollout(encoder, torch.randn(2, 3, *size))
    assert rolled.shape[1:] == maps["stage3.block1"].shape[2:]
    torch.testing.assert_close(rolled.sum((1, 2)), torch.ones(2))


def test_a_key_that_is_an_average_hands_its_weight_to_its_positions():
    torch.manual_seed(0)
    encoder = build_encoder("convattn_classic", kv_stride=2).eval()
    images = torch.randn(1, 3, 5, 4)
    weights = encoder.attention(images)["attend"][0, 0].mean(0)  # 3 x 2 blocks
    wanted = torch.zeros(5, 4)
    for block, weight in enumerate(weights):
        rows, columns = slice(block // 2 * 2, block // 2 * 2 + 2), slice(block % 2 * 2, block % 2 * 2 + 2)
        wanted[rows, columns] = weight / wanted[rows, columns].numel()
    torch.testing.assert_close(attention_maps(encoder, images)["attend"][0, 0], wanted)


def test_rollout_of_a_vit_equals_the_papers_loop():
    torch.manual_seed(0)
    encoder = build_encoder("timm:vit_tiny_patch16_224").eval()
    images = torch.randn(2, 3, 48, 64)
    wanted = torch.eye(13).repeat(2, 1, 1)
    for weights in encoder.attention(images).values():
        wanted = (0.5 * weights.mean(1) + 0.5 * torch.eye(13)) @ wanted
    shares = wanted[:, 0, 1:] / wanted[:, 0, 1:].sum(1, keepdim=True)
    torch.testing.assert_close(attention_rollout(encoder, images, queries="class"), shares.view(2, 3, 4))
    with pytest.raises(UserError, match=r"stage4\.block1 has no class token"):
        attention_maps(build_encoder("convattn_nano"), images, queries="class")


def test_rollout_through_a_smaller_map_equals_averages_of_its_positions():
    torch.manual_seed(0)
    encoder = build_encoder("convattn_nano", stem_stride=1, depths=[1, 1, 1, 1], attention_from=3).eval()
    images = torch.randn(1, 3, 16, 24)
    third, fourth = (weights.mean(1)[0] for weights in encoder.attention(images).values())
    mix = lambda weights: 0.5 * weights + 0.5 * torch.eye(len(weights))  # noqa: E731
    down = mix(third).view(2, 2, 3, 2, 24).mean((1, 3)).reshape(6, 24)  # 4 x 6 positions to 2 x 3
    wanted = (mix(fourth) @ down).mean(0)
    torch.testing.assert_close(attention_rollout(encoder, images)[0], wanted.view(4, 6))


def test_an_encoder_without_attention_has_no_maps():
    encoder = build_encoder("timm:resnet18")
    assert attention_maps(encoder, torch.randn(1, 3, 32, 32)) == {}
    assert attention_rollout(encoder, torch.randn(1, 3, 32, 32)) is None


def test_asking_leaves_batch_statistics_as_they_are():
    encoder = build_encoder("convattn_nano", stem_stride=2, norm="batch")
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    attention_maps(encoder, torch.randn(2, 3, 32, 32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_the_overlay_is_hottest_where_the_heat_is():
    pixels = np.full((40, 60, 3), 128, np.uint8)
    heat = np.zeros((4, 6))
    heat[1, 4] = 1.0
    shown = overlay(pixels, heat)
    brightest = np.unravel_index(shown.astype(int).sum(2).argmax(), (40, 60))
    assert shown.dtype == np.uint8 and 10 <= brightest[0] < 20 and 40 <= brightest[1] < 50
    assert np.array_equal(
        overlay(pixels, np.ones((3, 3))), overlay(pixels, np.zeros((1, 1)))
    )  # no preference, no heat
    assert heat_colours(np.array([[-1.0, np.nan, 2.0]])).tolist() == [
        [[0, 0, 4], [0, 0, 4], [252, 255, 164]]
    ]
