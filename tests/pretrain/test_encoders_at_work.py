"""Encoders as training uses them: compiled, in bf16, channels-last; hard attention's gradient;
attention of timm's ViTs.
"""

import copy

import pytest
import torch
from torch import nn

from cluster.errors import UserError
from pretrain.encoders import build_encoder
from pretrain.encoders.layers import ConvolutionalAttention
from pretrain.methods import build_method
from pretrain.training.recipe import compile_blocks


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def nano(**arguments):
    return build_encoder("convattn_nano", **{"stem_stride": 2, **arguments})


@pytest.mark.slow  # importing and starting the compiler takes seconds
@pytest.mark.parametrize("attention", ["soft", "hard"])
def test_one_graph_holds_the_whole_encoder_also_for_another_size(attention):
    encoder = nano(attention=attention, max_keys=16)
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    for size in ((64, 64), (40, 72)):
        images = torch.randn(2, 3, *size)
        for mine, graph in zip(encoder(images), compiled(images), strict=True):
            torch.testing.assert_close(graph, mine)


@pytest.mark.parametrize(
    "name", ["convattn_nano", "convattn_classic", "timm:resnet18", "timm:vit_tiny_patch16_224"]
)
def test_blocks_are_what_an_encoder_consists_of(name):
    encoder = build_encoder(name)
    counted = [id(parameter) for block in encoder.blocks() for parameter in block.parameters()]
    assert len(counted) == len(set(counted))
    assert sum(p.numel() for b in encoder.blocks() for p in b.parameters()) > 0.9 * sum(
        p.numel() for p in encoder.parameters()
    )


@pytest.mark.slow  # importing and starting the compiler takes seconds
def test_compiled_by_blocks_gradients_are_ready_while_others_are_computed(monkeypatch):
    """No graph breaks, nothing is compiled again after the second step,
    and gradients come one block after the other.
    """
    import torch._dynamo.utils as dynamo
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: _compile_by(self, counter, **options))
    dynamo.counters.clear()
    method = build_method("simclr", nano(), {})
    plain = copy.deepcopy(method)
    compile_blocks(method)
    views = [torch.randn(4, 3, 32, 32) for _ in range(2)]
    for step in range(3):
        loss = method(views).loss
        # as one graph the encoder would be one node, whose gradients are all ready at its end
        assert _count_compiled(loss.grad_fn) == len(method.encoder.blocks())
        loss.backward()
        if step == 1:
            graphs = counter.frame_count
    assert counter.frame_count == graphs and not dynamo.counters["graph_break"]
    torch.testing.assert_close(loss, plain(views).loss)


def _count_compiled(node):
    found, seen = [node], {node}
    for one in found:
        new = [
            next_one for next_one, _ in one.next_functions if next_one is not None and next_one not in seen
        ]
        seen.update(new)
        found += new
    return sum("CompiledFunction" in one.name() for one in found)


def _compile_by(module, backend, **options):
    module._compiled_call_impl = torch.compile(module._call_impl, backend=backend, **options)


@pytest.mark.parametrize("attention", ["soft", "hard"])
def test_bf16_autocast_trains_and_stays_near_float32(attention):
    encoder = nano(attention=attention)
    images = torch.randn(2, 3, 64, 64)
    wanted = encoder(images)[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        last = encoder(images)[-1]
    (last.float() * torch.randn_like(wanted)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())
    similarity = torch.cosine_similarity(last.float().flatten(1), wanted.flatten(1))
    # a hard choice may fall differently in bf16, so its bound is looser
    assert similarity.min() > (0.999 if attention == "soft" else 0.98)


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_memory_layout_of_images_changes_nothing_and_maps_are_channels_last(norm):
    encoder = nano(norm=norm).eval()
    images = torch.randn(2, 3, 48, 64)
    planar, last = encoder(images), encoder(images.contiguous(memory_format=torch.channels_last))
    for one, other in zip(planar, last, strict=True):
        assert torch.equal(one, other)
        assert one.is_contiguous(memory_format=torch.channels_last)


def test_a_step_does_not_depend_on_who_else_is_in_the_batch():
    encoder = nano().eval()
    images = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(encoder(images)[-1][1:2], encoder(images[1:2])[-1], atol=1e-5, rtol=0)


def test_hard_attention_gives_gradient_to_queries_and_chosen_keys_only():
    layer = ConvolutionalAttention(8, 1, mode="hard", top_k=2).double()
    queries = torch.randn(1, 8, 1, 6, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(1, 8, 1, 6, dtype=torch.float64, requires_grad=True)
    # only the first query is asked for, so only its two strongest keys may feel it
    layer.attend(queries, keys)[..., 0].square().sum().backward()
    strongest = (queries[0, :, 0, 0] @ keys[0, :, 0]).topk(2).indices.tolist()
    assert sorted(keys.grad[0, :, 0].abs().sum(0).nonzero().flatten().tolist()) == sorted(strongest)
    assert queries.grad[0, :, 0].abs().sum(0).nonzero().flatten().tolist() == [0]
    assert torch.autograd.gradcheck(layer.attend, (queries, keys))


def test_hard_with_at_least_as_many_keys_as_there_are_is_soft():
    soft, hard = ConvolutionalAttention(8, 2), ConvolutionalAttention(8, 2, mode="hard", top_k=1000)
    hard.load_state_dict(soft.state_dict())
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(hard(x), soft(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": 3}, "3 attention heads do not divide 8 channels"),
        ({"mode": "firm"}, "unknown attention 'firm'"),
        ({"mode": "hard", "top_k": 0}, "top_k=0"),
        ({"kv_stride": 0}, "kv_stride=0"),
    ],
)
def test_impossible_attention_is_explained(options, words):
    with pytest.raises(UserError, match=words):
        ConvolutionalAttention(8, **options)


@pytest.mark.parametrize("name", ["convattn_nano", "convattn_small"])
def test_layers_rise_in_the_order_of_the_forward_pass(name):
    encoder = build_encoder(name)
    blocks = [
        encoder.layer_of(f"stages.{s}.{b}.norm.weight")
        for s, n in enumerate(encoder.stages)
        for b in range(len(n))
    ]
    assert blocks == list(range(1, encoder.num_layers))
    assert encoder.layer_of("downs.2.1.weight") == encoder.layer_of("stages.2.0.norm1.weight")
    assert encoder.layer_of("norm.weight") == encoder.num_layers - 1
