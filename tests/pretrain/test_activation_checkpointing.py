"""Blocks that are computed again in the backward pass: the same numbers to the bit, from fewer bytes."""

import copy

import pytest
import torch
from torch import nn

from pretrain.encoders import build_encoder
from pretrain.methods import build_method
from pretrain.training.activation_checkpointing import checkpoint_blocks
from pretrain.training.optimizers import Rates
from pretrain.training.plan import Plan
from pretrain.training.recipe import compile_blocks
from pretrain.training.settings import TrainingSettings
from pretrain.training.stepping import Stepper
from tests.benchmarks.activations import saved_bytes

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 3
SIDE = 32
SMALL = {"stem_stride": 1, "dims": [8, 16, 16, 32], "depths": [1, 1, 2, 2]}
ENCODERS = {
    "layer norm": ("convattn_nano", SMALL | {"drop_path": 0.3}),
    "batch norm": ("convattn_nano", SMALL | {"norm": "batch"}),
    "classic": ("convattn_classic", {"dim": 8}),
    "timm's ResNet": ("timm:test_resnet", {}),
    "timm's ViT": ("timm:test_vit", {"drop_path_rate": 0.3}),
}


def trained(encoder, *, checkpointing, compiled=False, **more):
    """Losses of three steps, and the method after them."""
    name, arguments = ENCODERS[encoder]
    torch.manual_seed(0)
    method = build_method(
        "simclr", build_encoder(name, **arguments), {"hidden_dim": 32, "projection_dim": 16}, **more
    )
    if compiled:
        compile_blocks(method)
    if checkpointing:
        checkpoint_blocks(method)
    training = TrainingSettings(batch_size_global=8, steps=STEPS, activation_checkpointing=checkpointing)
    plan = Plan("unused", training, STEPS, STEPS, lambda step: Rates(0.05, 0.05, 0.0))
    optimizer = torch.optim.SGD(
        [{"params": list(method.parameters()), "weight_decay_factor": 0.0}], lr=0.05, momentum=0.9
    )
    stepper = Stepper(method, optimizer, plan, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    losses = []
    for step in range(STEPS):
        losses.append(
            stepper.backward(
                [torch.randn(8, 3, SIDE, SIDE, generator=generator) for _ in range(2)], step
            ).loss
        )
        stepper.move(step, unsound=torch.zeros(()))
    return losses, method


@pytest.mark.parametrize("encoder", ENCODERS)
def test_losses_weights_and_statistics_are_the_same_bits(encoder):
    (losses, method), (as_always, plain) = (trained(encoder, checkpointing=on) for on in (True, False))
    assert losses == as_always and len(set(losses)) == STEPS
    state, expected = method.state_dict(), plain.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


@pytest.mark.parametrize("more", [{"images_per_pass": 4}, {"exact_pieces": 2}], ids=str)
def test_parts_of_a_batch_may_be_computed_again_too(more):
    assert (
        trained("layer norm", checkpointing=True, **more)[0]
        == trained("layer norm", checkpointing=False, **more)[0]
    )


@pytest.mark.slow  # importing and starting the compiler takes seconds
@pytest.mark.parametrize("encoder", ["layer norm", "batch norm"])
def test_compiled_blocks_may_be_computed_again_too(encoder, monkeypatch):
    """By the compiler's first half, which makes the graphs of the backward pass;
    its second writes faster kernels.
    """
    monkeypatch.setattr(nn.Module, "compile", _compiled_without_kernels)
    (losses, method), (as_always, plain) = (
        trained(encoder, checkpointing=on, compiled=True) for on in (True, False)
    )
    assert losses == as_always
    expected = plain.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in method.state_dict().items())


def _compiled_without_kernels(module, **options):
    module._compiled_call_impl = torch.compile(module._call_impl, backend="aot_eager", **options)


# most of what this small ResNet saves is its stem's, which is no block
@pytest.mark.parametrize(
    ("encoder", "fraction"), [("layer norm", 0.4), ("timm's ResNet", 0.8), ("timm's ViT", 0.4)]
)
def test_fewer_bytes_are_saved(encoder, fraction):
    name, arguments = ENCODERS[encoder]
    module = build_encoder(name, **arguments)
    images = torch.randn(4, 3, SIDE, SIDE)
    before = saved_bytes(module, images)
    checkpoint_blocks(module)
    assert saved_bytes(module, images) < fraction * before


def test_a_copy_computes_nothing_again():
    """A copy with the original's blocks inside would train these."""
    encoder = build_encoder("convattn_nano", **SMALL)
    checkpoint_blocks(encoder)
    other = copy.deepcopy(encoder)
    other(torch.randn(2, 3, SIDE, SIDE))[-1].square().sum().backward()
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(parameter.grad is not None for parameter in other.parameters())
