"""Optimizers and their parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from cluster.errors import choose


def parameter_groups(
    module: nn.Module,
    *,
    weight_decay: float,
    learning_rate_share: Callable[[str], float] = lambda name: 1.0,
) -> list[dict[str, Any]]:
    """Every trainable parameter in exactly one group.

    Biases and the gains of norms (fewer than two axes) are not decayed, as all published recipes have it.
    `learning_rate_share` maps a parameter's name to its share of the learning rate (layer-wise decay). Groups carry
    `learning_rate_share`, which `set_learning_rate` reads.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        share, is_matrix = learning_rate_share(name), parameter.ndim >= 2
        group = groups.setdefault(
            (share, is_matrix),
            {
                "params": [],
                "names": [],
                "learning_rate_share": share,
                "weight_decay": weight_decay if is_matrix else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _lars(groups: list[dict[str, Any]], learning_rate: float, momentum: float) -> Optimizer:
    from lightly.utils.lars import LARS

    # You et al., https://arxiv.org/abs/1708.03888; lightly's skips adaptation where weight decay is 0, as SimCLR does
    return LARS(groups, lr=learning_rate, momentum=momentum)


def _adamw(groups: list[dict[str, Any]], learning_rate: float, momentum: float) -> Optimizer:
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(momentum, 0.999), fused=True)


def _sgd(groups: list[dict[str, Any]], learning_rate: float, momentum: float) -> Optimizer:
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, fused=True)


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


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of every group, by its share."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("learning_rate_share", 1.0)
