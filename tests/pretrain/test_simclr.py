"""SimCLR against the paper's formula, and two gloo ranks against one process on the whole batch."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from cluster.errors import UserError
from pretrain.encoders import build_encoder
from pretrain.methods import build_method, method_views
from pretrain.training import distributed
from pretrain.training.batch_norm import synchronise_batch_norm
from pretrain.training.distributed import GradientAverager
from tests.ranks import run_on_ranks


def nt_xent(first, second, temperature):
    """Algorithm 1 of the paper (https://arxiv.org/abs/2002.05709), in float64 and loops."""
    z = np.empty((2 * len(first), first.shape[1]))
    z[0::2], z[1::2] = first, second  # z_{2k-1} and z_{2k} are the two views of image k
    s = (z @ z.T) / np.outer(np.linalg.norm(z, axis=1), np.linalg.norm(z, axis=1))

    def l(i, j):  # noqa: E743 - the paper's name
        denominator = sum(math.exp(s[i, k] / temperature) for k in range(len(z)) if k != i)
        return -math.log(math.exp(s[i, j] / temperature) / denominator)

    return np.mean([l(2 * k, 2 * k + 1) + l(2 * k + 1, 2 * k) for k in range(len(first))]) / 2


def make_method():
    torch.manual_seed(0)
    encoder = build_encoder("convattn_nano", stem_stride=2)
    return build_method("simclr", encoder, {"hidden_dim": 64, "temperature": 0.2}).double()


def make_views(batch=8):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 3, 32, 32, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_is_the_papers(temperature):
    method = make_method()
    method.criterion.temperature = temperature
    output = method(make_views())
    wanted = nt_xent(*(part.numpy() for part in output.embeddings), temperature)
    assert float(output.loss.detach()) == pytest.approx(wanted, rel=1e-5)
    assert output.chance_loss == pytest.approx(math.log(15))


def one_rank_of_simclr():
    rank, world = distributed.rank(), distributed.world_size()
    method = make_method()
    assert synchronise_batch_norm(method) == 2
    averager = GradientAverager(method.parameters(), bucket_bytes=100_000)
    share = 8 // world
    output = method([view[rank * share : (rank + 1) * share] for view in make_views()])
    output.loss.backward()
    averager.finish()
    gradients = {name: parameter.grad.numpy().copy() for name, parameter in method.named_parameters()}
    buffers = {name: buffer.numpy().copy() for name, buffer in method.named_buffers()}
    return float(output.loss.detach()), output.chance_loss, gradients, buffers


@pytest.mark.parametrize("num_ranks", [2])
def test_loss_and_averaged_gradients_on_ranks_equal_one_process(num_ranks):
    method = make_method()
    output = method(make_views())
    output.loss.backward()
    results = run_on_ranks(one_rank_of_simclr, num_ranks)
    assert np.mean([loss for loss, *_ in results]) == pytest.approx(float(output.loss.detach()), rel=1e-12)
    for _, chance, gradients, buffers in results:
        assert chance == pytest.approx(output.chance_loss)
        for name, parameter in method.named_parameters():
            np.testing.assert_allclose(
                gradients[name], parameter.grad.numpy(), rtol=1e-9, atol=1e-12, err_msg=name
            )
        for name, buffer in method.named_buffers():
            np.testing.assert_allclose(buffers[name], buffer.numpy(), rtol=1e-12, err_msg=name)


class Partly(nn.Module):
    """One of its layers is not used, and one is frozen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.used, self.unused, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.conv = nn.Conv2d(1, 4, 2).to(memory_format=torch.channels_last)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return (
            self.frozen(self.used(x)).sum() * (1 + distributed.rank())
            + self.conv(x.view(-1, 1, 2, 2)).square().sum()
        )


def one_rank_of_averaging():
    module = Partly()
    averager = GradientAverager(module.parameters(), bucket_bytes=32)
    seen = []
    for step in range(3):
        module.zero_grad()
        module(torch.full((2, 4), 1.0 + distributed.rank() + step)).backward()
        averager.finish()
        seen.append([None if p.grad is None else p.grad.clone().numpy() for p in module.parameters()])
    assert all(p.grad.stride() == p.stride() for p in module.conv.parameters())
    return seen


def test_gradients_are_averaged_step_after_step_also_of_unused_parameters():
    results = run_on_ranks(one_rank_of_averaging, 2)
    for step in range(3):
        expected = []
        for rank in range(2):
            module = Partly()
            x = torch.full((2, 4), 1.0 + rank + step)
            loss = (
                module.frozen(module.used(x)).sum() * (1 + rank)
                + module.conv(x.view(-1, 1, 2, 2)).square().sum()
            )
            loss.backward()
            expected.append([torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()])
        for first, second, wanted, parameter in zip(
            results[0][step], results[1][step], zip(*expected), Partly().parameters()
        ):
            if parameter.requires_grad:
                np.testing.assert_array_equal(first, second)
                np.testing.assert_allclose(first, sum(wanted).numpy() / 2, rtol=1e-6)
            else:
                assert first is None


def test_unknown_names_and_arguments_are_explained():
    encoder = build_encoder("convattn_nano")
    with pytest.raises(UserError, match="unknown method 'simclear'; did you mean 'simclr'"):
        build_method("simclear", encoder, {})
    with pytest.raises(UserError, match="unknown argument 'temprature'; did you mean 'temperature'"):
        build_method("simclr", encoder, {"temprature": 0.1})
    with pytest.raises(UserError, match="unknown argument 'crop_scales'; did you mean 'crop_scale'"):
        method_views("simclr", None, 64, {"crop_scales": (0.2, 1.0)})
