"""Batch norm over the global batch: equal to one process, one class on every device,
and no break for the compiler.
"""

import numpy as np
import pytest
import torch
from torch import nn

from pretrain.training import distributed
from pretrain.training.batch_norm import BatchNormOverRanks, synchronise_batch_norm
from pretrain.training.distributed import GradientAverager
from tests.ranks import run_on_ranks


def normed(kind, dtype=torch.float64):
    """Some layers with norms, and the inputs of the global batch, [8, 3, 6, 6]."""
    torch.manual_seed(0)
    if kind == "timm":  # whose norms have their activation inside
        from timm.layers import BatchNormAct2d

        layers = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4, act_layer=nn.SiLU), nn.Conv2d(4, 2, 3))
    else:
        norm = nn.BatchNorm2d(4, affine=kind == "plain", momentum=None if kind == "averaging" else 0.1)
        layers = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 2, 3))
    return layers.to(dtype), 3 + torch.randn(8, 3, 6, 6, dtype=dtype)


def two_steps(kind):
    layers, inputs = normed(kind)
    rank, world = distributed.rank(), distributed.world_size()
    num = synchronise_batch_norm(layers)
    averager = GradientAverager(layers.parameters())
    share = len(inputs) // world
    mine = inputs[rank * share : (rank + 1) * share].clone().requires_grad_()
    for _ in range(2):
        layers.zero_grad()
        (layers(mine) ** 3).mean().backward()
        averager.finish()
    layers.eval()
    arrays = {name: value.numpy() for name, value in layers.state_dict().items()}
    arrays |= {f"{name} gradient": p.grad.numpy().copy() for name, p in layers.named_parameters()}
    arrays |= {"in evaluation": layers(inputs).detach().numpy()}
    return num, arrays, mine.grad.numpy() / world


@pytest.mark.parametrize("kind", ["plain", "averaging", "timm"])
def test_two_ranks_equal_one_process(kind):
    none, whole, input_gradient = two_steps(kind)
    ranks = run_on_ranks(two_steps, 2, kind)
    assert none == 0 and [num for num, *_ in ranks] == [1, 1]
    for _, arrays, _ in ranks:
        assert arrays.keys() == whole.keys()
        for name, value in arrays.items():
            np.testing.assert_allclose(value, whole[name], rtol=1e-9, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(
        np.concatenate([part for *_, part in ranks]), input_gradient, rtol=1e-9, atol=1e-12
    )


def kind_and_dtype():
    """Which class norms get that lie on a device, and the dtype of what they give under autocast."""
    elsewhere = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to("meta")
    synchronise_batch_norm(elsewhere)
    with torch.autocast("cpu", torch.bfloat16):
        short = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormOverRanks(4))(torch.randn(2, 3, 8, 8))
    return type(elsewhere[1]).__name__, str(short.dtype)


def test_one_class_on_every_device_that_keeps_the_dtype():
    assert run_on_ranks(kind_and_dtype, 2) == [("BatchNormOverRanks", "torch.bfloat16")] * 2


def graphs_of_three_steps():
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch._dynamo.utils import counters

    layers, inputs = normed("timm", torch.float32)
    synchronise_batch_norm(layers)
    counter = CompileCounterWithBackend("aot_eager")
    counters.clear()
    frames = []
    network = torch.compile(layers, backend=counter, dynamic=False)
    for _ in range(3):
        network(inputs).square().mean().backward()
        frames.append(counter.frame_count)
    return frames, sum(counters["graph_break"].values())


@pytest.mark.slow  # each rank imports and starts the compiler
def test_the_compiler_takes_synchronised_norms_into_its_graph():
    assert run_on_ranks(graphs_of_three_steps, 2) == [([1, 1, 1], 0)] * 2
