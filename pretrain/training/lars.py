"""LARS over lists of tensors: few kernels, and no wait for the device (You et al., https://arxiv.org/abs/1708.03888)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """SGD with momentum whose steps are as long as each tensor is large.

    A tensor's step is `trust * |p| / (|g| + weight_decay * |p| + eps)` times `g + weight_decay * p`. Groups whose weight decay
    is 0 are not scaled, as in SimCLR and BYOL; nor are tensors that are 0, and a gradient that is 0 moves nothing. The same as
    lightly's to float32 rounding, with the same state.

    Args:
        params: parameters or groups; each group may have its own `lr`, `momentum` and `weight_decay`.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"trust_coefficient": trust_coefficient, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Moves all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                torch._foreach_add_(parameters, self._moves(parameters, group), alpha=-group["lr"])
        return loss

    def _moves(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        moves = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if group["weight_decay"]:
            moves = _scaled(parameters, moves, group)
        if not group["momentum"]:
            return moves
        is_new = ["momentum_buffer" not in self.state[parameter] for parameter in parameters]
        for parameter, move, new in zip(parameters, moves, is_new, strict=True):
            if new:
                self.state[parameter]["momentum_buffer"] = move.clone()
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        old = [index for index, new in enumerate(is_new) if not new]
        if old:
            torch._foreach_mul_([buffers[index] for index in old], group["momentum"])
            torch._foreach_add_([buffers[index] for index in old], [moves[index] for index in old])
        return buffers


def _scaled(parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    decay = group["weight_decay"]
    sizes_N, slopes_N = torch.stack(torch._foreach_norm(parameters)), torch.stack(torch._foreach_norm(gradients))
    scales_N = sizes_N / (slopes_N + sizes_N * decay + group["eps"]) * group["trust_coefficient"]
    scales_N = scales_N.where(sizes_N != 0, 1.0).where(slopes_N != 0, 0.0)
    moves = torch._foreach_add(gradients, parameters, alpha=decay)
    torch._foreach_mul_(moves, list(scales_N.unbind()))
    return list(moves)
