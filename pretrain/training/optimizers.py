"""Optimizers and their parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cluster.errors import choose
from pretrain.training.lars import LARS


def parameter_groups(
    module: nn.Module,
    *,
    weight_decay: float,
    learning_rate_factor: Callable[[str], float] = lambda name: 1.0,
    constant_rate: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    """Every trainable parameter in exactly one group.

    Biases and the gains of norms (fewer than two axes) are not decayed, as all published recipes have it.
    `learning_rate_factor` maps a parameter's name to its fraction of the learning rate (layer-wise decay);
    parameters whose names start with one of `constant_rate` keep the peak rate after the warm-up.
    Groups say so, for `set_rates`.
    """
    groups: dict[tuple[float, bool, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        fraction = learning_rate_factor(name)
        is_matrix = parameter.ndim >= 2
        is_constant = name.startswith(constant_rate)
        group = groups.setdefault(
            (fraction, is_matrix, is_constant),
            {
                "params": [],
                "names": [],
                "learning_rate_share": fraction,  # the name that checkpoints know
                "is_constant": is_constant,
                "is_decayed": is_matrix,
                "weight_decay": weight_decay if is_matrix else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _lars(groups: list[dict[str, Any]], learning_rate: float, momentum: float) -> Optimizer:
    return LARS(groups, lr=learning_rate, momentum=momentum)


def _adamw(groups: list[dict[str, Any]], learning_rate: float, momentum: float) -> Optimizer:
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(momentum, 0.999), fused=True)


def _sgd(groups: list[dict[str, Any]], learning_rate: float, momentum: float) -> Optimizer:
    optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, fused=True)
    if momentum:
        optimizer.register_step_pre_hook(_start_momentum)
    return optimizer


def _start_momentum(optimizer: Optimizer, *_: Any) -> None:
    # a first step that is left out would leave the momentum as uninitialised memory
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if parameter.grad is not None and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float, float], Optimizer]] = {
    "adamw": _adamw,
    "lars": _lars,
    "sgd": _sgd,
}


def build_optimizer(
    name: str, groups: Iterable[dict[str, Any]], *, learning_rate: float, momentum: float = 0.9
) -> Optimizer:
    """Builds `adamw` (`momentum` is its first beta), `lars` or `sgd`. Raises UserError for another name."""
    bare = [{key: value for key, value in group.items() if key != "names"} for group in groups]
    return OPTIMIZERS[choose("optimizer", name, OPTIMIZERS)](bare, learning_rate, momentum)


def move_unless(unsound: Tensor, optimizer: Optimizer) -> None:
    """Takes the optimizer's step unless `unsound`, a float32 scalar on the device, is 1:
    then nothing of it changes.

    Those of `build_optimizer` decide on the device, as for torch's gradient scaler; others wait for it.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        if not bool(unsound):
            optimizer.step()
        return
    optimizer.found_inf = unsound  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Rates:
    """What the optimizer moves by in a step: learning rate, that of groups with a constant one,
    and weight decay.
    """

    learning_rate: float
    constant: float
    weight_decay: float


def set_rates(optimizer: Optimizer, rates: Rates) -> None:
    """Sets learning rate and weight decay of every group of `parameter_groups`."""
    for group in optimizer.param_groups:
        rate = rates.constant if group.get("is_constant") else rates.learning_rate
        group["lr"] = rate * group.get("learning_rate_share", 1.0)
        if group.get("is_decayed"):
            group["weight_decay"] = rates.weight_decay
