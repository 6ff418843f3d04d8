"""Batch norm over the global batch, the same on CPUs and on GPUs.

torch's SyncBatchNorm is for GPUs alone, waits for the device in each layer (it drops ranks without images by
a mask of bools), and the compiler breaks its graphs there. Here every rank has as many images, so that
statistics are combined without counting, in one message of a layer's
forward pass and one of its backward pass.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.encoders.layers import at_least_float32
from pretrain.training.distributed import rank, world_size


class BatchNormOverRanks(_BatchNorm):
    """Batch norm with the statistics of the global batch, on any device; one graph for the compiler.

    Input [B, C, ...] with the same B on every rank; the output has its dtype, statistics are float32 or
    more. Each rank's mean and squares around it are combined (Chan et al.,
    https://doi.org/10.1080/00031305.1983.10483115), as exact as one process. Modules inside it (the
    activation of timm's BatchNormAct2d) follow in their order.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 axes, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalises over all axes but the second."""
        self._check_input_dim(input)
        normalised = (
            self._normalised(input) if self.training and world_size() > 1 else super().forward(input)
        )
        for part in self.children():
            normalised = part(normalised)
        return normalised

    def _normalised(self, input: Tensor) -> Tensor:
        normalised, mean_C, variance_C = _OverRanks.apply(
            input, self.weight, self.bias, self.eps, rank(), world_size()
        )
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                momentum = (
                    self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
                )
                self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), momentum)
                count = input.numel() // input.shape[1] * world_size()
                unbiased = variance_C * (count / max(count - 1, 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        return cast(Tensor, normalised)


class _OverRanks(torch.autograd.Function):
    """Keeps the input and the statistics for the backward pass, nothing as large besides."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight_C: Tensor | None,
        bias_C: Tensor | None,
        eps: float,
        rank: int,
        world_size: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        axes = [0, *range(2, input.dim())]
        own = torch.stack(torch.var_mean(at_least_float32(input), axes, correction=0))
        # every rank's, by a sum to which each adds its own: sums over ranks are what the compiler knows best
        all_W2C = own.new_zeros(world_size, *own.shape)
        all_W2C[rank] = own
        dist.all_reduce(all_W2C)
        variances_WC, means_WC = all_W2C.unbind(1)
        mean_C = means_WC.mean(0)
        variance_C = variances_WC.mean(0) + (means_WC - mean_C).square().mean(0)
        ctx.save_for_backward(input, weight_C, mean_C, torch.rsqrt(variance_C + eps))
        ctx.world_size, ctx.has_bias = world_size, bias_C is not None
        ctx.mark_non_differentiable(mean_C, variance_C)
        normalised = F.batch_norm(input, mean_C, variance_C, weight_C, bias_C, eps=eps)
        return normalised, mean_C, variance_C

    @staticmethod
    def backward(ctx: Any, wanted: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        input, weight_C, mean_C, scale_C = ctx.saved_tensors
        axes, shape = [0, *range(2, input.dim())], [1, -1, *[1] * (input.dim() - 2)]
        wanted_exactly = at_least_float32(wanted)
        normalised = (at_least_float32(input) - mean_C.view(shape)) * scale_C.view(shape)
        own_2C = torch.stack([wanted_exactly.sum(axes), (wanted_exactly * normalised).sum(axes)])
        sums_2C = own_2C.clone()
        dist.all_reduce(sums_2C)
        count = input.numel() // input.shape[1] * ctx.world_size
        of_mean, of_scale = (sums_2C / count).unbind()
        gradient = wanted_exactly - of_mean.view(shape) - normalised * of_scale.view(shape)
        factor_C = scale_C if weight_C is None else scale_C * weight_C
        gradient = (gradient * factor_C.view(shape)).to(input.dtype)
        # of parameters a rank has the gradient of its own loss; they are averaged over ranks like all others
        of_weight = None if weight_C is None else own_2C[1].to(weight_C.dtype)
        of_bias = own_2C[0].to(mean_C.dtype) if ctx.has_bias else None
        return gradient, of_weight, of_bias, None, None, None


def synchronise_batch_norm(module: nn.Module) -> int:
    """Makes every batch norm inside `module` use the global batch; names and values in its state stay.
    Returns how many.

    Does nothing with one rank.
    """
    if world_size() == 1:
        return 0
    found = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, BatchNormOverRanks):
                setattr(parent, name, _synchronised(child))
                found += 1
    return found


def _synchronised(norm: _BatchNorm) -> nn.Module:
    new = BatchNormOverRanks(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
    )
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(new, name, parameter)
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(new, name, buffer)
    for name, part in norm.named_children():
        setattr(new, name, part)
    return new.train(norm.training)
