import itertools
import math

import pytest
import torch
from lightly.utils import lars as lightlys
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.errors import UserError
from pretrain.encoders import build_encoder
from pretrain.methods import build_method
from pretrain.training.lars import LARS
from pretrain.training.optimizers import Rates, build_optimizer, parameter_groups, set_rates
from pretrain.training.schedules import scaled_learning_rate, warmup_cosine


def test_warmup_then_cosine():
    values = [
        warmup_cosine(step, num_steps=100, num_warmup_steps=10, final_fraction=0.1) for step in range(100)
    ]
    assert values[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert values[10] == 1.0 == max(values)
    assert values[55] == pytest.approx(0.1 + 0.9 * 0.5)
    assert all(a > b for a, b in itertools.pairwise(values[10:]))
    assert (
        values[99] > 0.1
        and warmup_cosine(100, num_steps=100, num_warmup_steps=10, final_fraction=0.1) == 0.1
    )


@pytest.mark.parametrize(("num_steps", "num_warmup_steps"), [(1, 0), (2, 1), (1, 1), (5, 5)])
def test_tiny_schedules_stay_in_range(num_steps, num_warmup_steps):
    for step in range(num_steps):
        assert 0 < warmup_cosine(step, num_steps=num_steps, num_warmup_steps=num_warmup_steps) <= 1


def test_learning_rate_scales_with_the_batch():
    assert scaled_learning_rate(0.3, scaling="linear", batch_size_global=1024) == pytest.approx(1.2)
    assert scaled_learning_rate(0.075, scaling="sqrt", batch_size_global=4096) == pytest.approx(
        4.8
    )  # SimCLR, B.1
    assert scaled_learning_rate(0.3, scaling="none", batch_size_global=1024) == 0.3


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2))


def test_every_parameter_is_in_exactly_one_group_and_norms_are_not_decayed():
    module = network()
    module[0].bias.requires_grad_(False)
    groups = parameter_groups(
        module,
        weight_decay=0.1,
        learning_rate_factor=lambda name: 0.5 if name.startswith("0.") else 1.0,
        constant_rate=("1.",),
    )
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, p in module.named_parameters() if p.requires_grad)
    assert len(names) == len(set(names))
    decayed = {name for group in groups if group["weight_decay"] == 0.1 for name in group["names"]}
    assert decayed == {"0.weight", "3.weight"}
    optimizer = build_optimizer("adamw", groups, learning_rate=1.0)
    set_rates(optimizer, Rates(learning_rate=0.2, constant=0.9, weight_decay=0.3))
    by_name = {
        name: group for names, group in zip(groups, optimizer.param_groups) for name in names["names"]
    }
    assert by_name["0.weight"]["lr"] == pytest.approx(0.1) and by_name["3.weight"]["lr"] == pytest.approx(
        0.2
    )
    assert by_name["1.weight"]["lr"] == pytest.approx(0.9)
    assert by_name["0.weight"]["weight_decay"] == 0.3 and by_name["1.weight"]["weight_decay"] == 0.0


@pytest.mark.parametrize("name", ["adamw", "lars", "sgd"])
def test_each_optimizer_lowers_a_loss(name):
    torch.manual_seed(0)
    module, images = network(), torch.randn(8, 3, 4, 4)
    rate = {"adamw": 1e-2, "lars": 0.3, "sgd": 1e-1}[name]
    optimizer = build_optimizer(name, parameter_groups(module, weight_decay=1e-4), learning_rate=rate)
    losses = []
    for _ in range(30):
        loss = module(images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0] and math.isfinite(losses[-1])


def test_lars_scales_each_matrix_by_the_ratio_of_norms():
    module = nn.Linear(4, 4)
    module.weight.grad, module.bias.grad = torch.randn(4, 4), torch.randn(4)
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    optimizer = build_optimizer(
        "lars", parameter_groups(module, weight_decay=0.01), learning_rate=2.0, momentum=0.0
    )
    optimizer.step()
    gradient = module.weight.grad
    trust = 0.001 * weight.norm() / (gradient.norm() + 0.01 * weight.norm() + 1e-8)
    torch.testing.assert_close(module.weight.detach(), weight - 2.0 * trust * (gradient + 0.01 * weight))
    torch.testing.assert_close(module.bias.detach(), bias - 2.0 * module.bias.grad)  # not adapted


def test_an_unknown_optimizer_names_the_known_ones():
    with pytest.raises(UserError, match="unknown optimizer 'adam'; did you mean 'adamw'"):
        build_optimizer("adam", [], learning_rate=1.0)


def _some_parameters():
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 4), (8,), (3, 3, 2, 2), (5, 5), (6, 2)]
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    with torch.no_grad():
        parameters[3].zero_()  # is not scaled
    return parameters


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_moves_as_lightlys_and_asks_the_device_for_nothing(momentum):
    ours, theirs = _some_parameters(), _some_parameters()

    def groups(parameters):
        decayed, plain = parameters[:1] + parameters[2:], parameters[1:2]
        return [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]

    mine = LARS(groups(ours), lr=0.5, momentum=momentum)
    other = lightlys.LARS(groups(theirs), lr=0.5, momentum=momentum)
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        for index, (one, two) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(one.shape, generator=generator) * (
                index != 2 or step != 3
            )  # once it is 0
            one.grad, two.grad = (None, None) if (index, step) == (4, 2) else (gradient, gradient.clone())
        with Counted() as counted:
            mine.step()
        other.step()
        assert not any("_local_scalar_dense" in name or "is_nonzero" in name for name in counted.names)
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
    assert mine.state_dict()["state"].keys() == other.state_dict()["state"].keys()
    mine.load_state_dict(other.state_dict())  # checkpoints of runs that lightly's moved


class Counted(TorchDispatchMode):
    """Notes the kernels that are asked for."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_lars_takes_few_kernels_more_than_it_has_tensors():
    method = build_method("simclr", build_encoder("convattn_nano", stem_stride=4), {})
    parameters = list(method.parameters())
    optimizer = build_optimizer("lars", parameter_groups(method, weight_decay=1e-4), learning_rate=1e-4)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        with Counted() as counted:
            optimizer.step()
    kernels = [
        name for name in counted.names if not any(word in name for word in ("detach", "view", "unbind"))
    ]
    assert len(kernels) < 40, kernels
