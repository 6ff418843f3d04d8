"""Holding on to the weights that a run started from, so that it does not forget what they know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def hold_on(optimizer: Optimizer, module: nn.Module, start: Mapping[str, Tensor], *, strength: float) -> None:
    """Pulls parameters towards `start` after each step: w -= learning rate * strength * (w - start).

    It is the gradient of L2-SP's penalty, strength / 2 * |w - start|^2 (Li et al., https://arxiv.org/abs/1802.01483), but
    decoupled from the optimizer's own gradient as AdamW's weight decay is (https://arxiv.org/abs/1711.05101): adaptive
    optimizers would rescale it away. It depends on nothing but weights and learning rate, so it is the same bits on any number
    of ranks and after a restart, as long as `start` is. A step that is skipped does not pull.

    Args:
        optimizer: over `module`'s parameters, with their learning rates in its groups.
        start: by the names of `module`'s parameters; those it lacks are free.
        strength: 0 holds nothing; 1 / (sum of all learning rates) is about when holding and learning weigh the same.
    """
    named = {id(parameter): name for name, parameter in module.named_parameters()}
    held: list[tuple[dict[str, Any], list[Tensor], list[Tensor]]] = []
    for group in optimizer.param_groups:
        mine = [p for p in group["params"] if named[id(p)] in start]
        anchors = [start[named[id(p)]].to(p.device, p.dtype, copy=True) for p in mine]
        if mine:
            held.append((group, mine, anchors))

    @torch.no_grad()
    def pull(*_: Any) -> None:
        for group, parameters, anchors in held:
            torch._foreach_lerp_(parameters, anchors, min(1.0, group["lr"] * strength))

    optimizer.register_step_post_hook(pull)
