"""LARS over lists of tensors: few kernels, and no wait for the device (You et al.,
https://arxiv.org/abs/1708.03888).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """SGD with momentum whose steps are as long as each tensor is large.

    A tensor's step is `trust * |p| / (|g| + weight_decay * |p| + eps)` times `g + weight_decay * p`. Groups
    whose weight decay is 0 are not scaled, as in SimCLR and BYOL; nor are tensors that are 0, and a gradient
    that is 0 moves nothing. The same as lightly's to float32 rounding, with the same state. A step changes
    nothing where the attribute `found_inf` is set, a float scalar on the device, and is 1,
    as in torch's fused optimizers.

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
        self._step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Moves all parameters that have a gradient."""
        loss, unsound = None, self._unsound
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                moves = self._moves(parameters, group)
                if unsound is not None:
                    moves = list(torch._foreach_mul(moves, (1 - unsound).to(moves[0].dtype)))
                torch._foreach_add_(parameters, moves, alpha=-group["lr"])
        return loss

    @property
    def _unsound(self) -> Tensor | None:
        return getattr(self, "found_inf", None)

    def _moves(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        moves = [parameter.grad for parameter in parameters if parameter.grad is not None]
        unsound, momentum = self._unsound, group["momentum"]
        if unsound is not None:
            _clear_if(unsound, moves)
            if momentum:
                momentum = torch.where(unsound > 0, 1.0, momentum).to(moves[0].dtype)
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
            torch._foreach_mul_([buffers[index] for index in old], momentum)
            torch._foreach_add_([buffers[index] for index in old], [moves[index] for index in old])
        return buffers


def _clear_if(unsound: Tensor, gradients: list[Tensor]) -> None:
    """Sets gradients to 0 where `unsound` is 1; as integers, because NaN times 0 is NaN."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = [gradient.view(kinds[gradient.element_size()]) for gradient in gradients]
    torch._foreach_mul_(bits, (1 - unsound).to(bits[0].dtype))


def _scaled(parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    decay = group["weight_decay"]
    sizes_N = torch.stack(torch._foreach_norm(parameters))
    slopes_N = torch.stack(torch._foreach_norm(gradients))
    scales_N = sizes_N / (slopes_N + sizes_N * decay + group["eps"]) * group["trust_coefficient"]
    scales_N = scales_N.where(sizes_N != 0, 1.0).where(slopes_N != 0, 0.0)
    moves = torch._foreach_add(gradients, parameters, alpha=decay)
    torch._foreach_mul_(moves, list(scales_N.unbind()))
    return list(moves)
