"""Pulling back to the weights that a run started from, so that it does not forget what they know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def hold_on(
    optimizer: Optimizer,
    module: nn.Module,
    start: Mapping[str, Tensor],
    *,
    strength: float,
    peak_rate: float,
) -> None:
    """Pulls parameters towards `start` after each step:
    w -= strength * learning rate / peak rate * (w - start).

    It is the gradient of L2-SP's penalty (Li et al., https://arxiv.org/abs/1802.01483), but decoupled from
    the optimizer's own gradient as AdamW's weight decay is (https://arxiv.org/abs/1711.05101): adaptive
    optimizers would rescale it away. It depends on nothing but weights and learning rate, so it is the same
    bits on any number of ranks and after a restart, as long as `start` is.
    A step that is skipped does not pull.

    Args:
        optimizer: over `module`'s parameters, with their learning rates in its groups.
        start: by the names of `module`'s parameters; those it lacks are free.
        strength: the fraction of the way back that a step takes at the peak rate, 0 to 1. Weights then come
            as far from their start as about 1 / strength steps in one direction lead.
        peak_rate: the highest learning rate of the run.
    """
    named = {id(parameter): name for name, parameter in module.named_parameters()}
    held: list[
        tuple[int, list[Tensor], list[Tensor]]
    ] = []  # by number: a state that is loaded brings groups of its own
    for number, group in enumerate(optimizer.param_groups):
        mine = [p for p in group["params"] if named[id(p)] in start]
        anchors = [start[named[id(p)]].to(p.device, p.dtype, copy=True) for p in mine]
        if mine:
            held.append((number, mine, anchors))

    @torch.no_grad()
    def pull(*_: Any) -> None:
        for number, parameters, anchors in held:
            weight = min(1.0, strength * optimizer.param_groups[number]["lr"] / peak_rate)
            unsound = getattr(optimizer, "found_inf", None)  # see `optimizers.move_unless`
            if unsound is None:
                torch._foreach_lerp_(parameters, anchors, weight)
            else:
                weights = ((1 - unsound.double()) * weight).to(parameters[0].dtype)
                torch._foreach_lerp_(parameters, anchors, [weights] * len(parameters))

    if peak_rate > 0:  # nothing moves else
        optimizer.register_step_post_hook(pull)
