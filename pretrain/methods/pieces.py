"""The global batch through the encoder in equal pieces,
so that a step is the same bits on any number of ranks.

What differs between one rank and many is how sums are grouped: kernels see batches of another size, and
gradients are added up in another order. Here the batch is cut into a number of pieces that belongs to the
run, each goes through the encoder on its own, their outputs are gathered, and every rank computes heads and
loss on the whole of them. The gradients of pieces are added up as integers, which no order changes: each
tensor is rounded to multiples of a power of two that its largest value sets, far finer than float32 resolves
(reproducible summation, Demmel and Nguyen, https://doi.org/10.1109/ARITH.2013.9). How embeddings of pieces
are kept apart from their graphs is Gao et al., https://arxiv.org/abs/2101.06983.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.errors import UserError
from pretrain.data.hashing import hash64
from pretrain.training import distributed
from pretrain.training.stepping import seed_draws

INTEGER_BITS = 61  # of the sum of all pieces; the sign and one to spare make 63

Encode = Callable[[list[Tensor]], list[Tensor]]


class Pieces:
    """A number of pieces, and the gradients that they want of an encoder's parameters in the current step.

    `finish()` after `backward()` sets `.grad` to their sum over all ranks. The parameters of heads need
    nothing: every rank has the same gradient of them.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self._parameters: list[nn.Parameter] = []
        self._gradients: list[list[Tensor]] = []  # of each piece of this rank
        self._num_calls = 0
        # every rank has the same loss, so that one counts
        self.loss_weight, self.chance = float(distributed.rank() == 0), 0

    def whole(self, tensor: Tensor) -> Tensor:
        """Every rank's loss has the rows of the whole batch."""
        return tensor

    def run(
        self, encode: Encode, views: Sequence[Tensor], parameters: Sequence[nn.Parameter]
    ) -> list[Tensor]:
        """`encode(views of a piece)`, one output [B, ...] a view, for all pieces of all ranks:
        [B_global, ...] a view.

        Args:
            views: of this rank's share of the batch, [B_rank, C, H, W] each.
            parameters: those that `encode` trains.
        """
        if not torch.is_grad_enabled() or not parameters:
            return _gathered(self._outputs(encode, views))
        if self._num_calls == 0:
            self._parameters = list(parameters)
        self._num_calls += 1
        return list(_ThroughEncoder.apply(self, encode, parameters[0], *views))

    def rows(self, num_rows: int, index: int) -> slice:
        """Which of a rank's `num_rows` rows are those of its piece `index`."""
        size = num_rows // self._num_here()
        return slice(index * size, (index + 1) * size)

    def take(self, outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
        """Adds the gradients of one piece: `wanted` are those of its outputs."""
        used = [
            (output, gradient)
            for output, gradient in zip(outputs, wanted, strict=True)
            if output.requires_grad
        ]
        gradients = torch.autograd.grad(
            [output for output, _ in used],
            self._parameters,
            [gradient for _, gradient in used],
            allow_unused=True,
        )
        self._gradients.append(
            [
                torch.zeros_like(parameter) if gradient is None else gradient
                for parameter, gradient in zip(self._parameters, gradients, strict=True)
            ]
        )

    @torch.no_grad()
    def finish(self) -> None:
        """Sets `.grad` of the encoder's parameters to the sum of all pieces of all ranks."""
        if not self._gradients:
            return
        # the largest values over all pieces set the unit of each tensor
        largest = torch.stack(
            [torch.stack(torch._foreach_norm(piece, math.inf)) for piece in self._gradients]
        )
        largest = largest.double().amax(0).nan_to_num(nan=math.inf)
        if distributed.world_size() > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        sound = largest.isfinite()
        bits = INTEGER_BITS - math.ceil(math.log2(self.num * self._num_calls))
        exponents = bits - torch.frexp(largest.where(sound, 1.0)).exponent
        sizes = [parameter.numel() for parameter in self._parameters]
        scale = _repeated(torch.ldexp(torch.ones_like(largest), exponents).where(sound, 0.0), sizes)
        total = torch.zeros(len(scale), dtype=torch.int64, device=scale.device)
        for piece in self._gradients:
            flat = torch.cat([gradient.reshape(-1) for gradient in piece]).double()
            total += flat.mul_(scale).nan_to_num_(nan=0.0).round_().long()
        if distributed.world_size() > 1:
            dist.all_reduce(total)
        unit = torch.ldexp(torch.ones_like(largest), -exponents).where(sound, math.nan)
        sums = total.double().mul_(_repeated(unit, sizes)).split(sizes)
        for parameter, value in zip(self._parameters, sums, strict=True):
            # in the strides of the parameter: fused optimizers walk both in memory order
            parameter.grad = torch.empty_like(parameter).copy_(value.view_as(parameter))
        self._gradients, self._parameters, self._num_calls = [], [], 0

    def _num_here(self) -> int:
        num_ranks = distributed.world_size()
        if self.num % num_ranks:
            raise UserError(f"{num_ranks} workers do not divide method.exact_pieces={self.num}")
        return self.num // num_ranks

    def _outputs(self, encode: Encode, views: Sequence[Tensor]) -> list[list[Tensor]]:
        """Of each of this rank's pieces, each with random numbers of its own (drop path) that its position
        in the batch sets.
        """
        num_here, seed = self._num_here(), torch.initial_seed()
        outputs = []
        for index in range(num_here):
            seed_draws(_seed(seed, distributed.rank() * num_here + index))
            outputs.append(encode([view[self.rows(len(view), index)] for view in views]))
        seed_draws(_seed(seed, self.num))
        return outputs


class _ThroughEncoder(torch.autograd.Function):
    """Outputs without graph; the graphs of pieces are walked one by one when the gradient comes."""

    @staticmethod
    def forward(
        ctx: Any, pieces: Pieces, encode: Encode, parameter: Tensor, *views: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            outputs = pieces._outputs(encode, views)
        ctx.pieces, ctx.outputs = pieces, outputs
        return tuple(_gathered([[output.detach() for output in piece] for piece in outputs]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        pieces, outputs = ctx.pieces, ctx.outputs
        num_rows = len(gradients[0]) // distributed.world_size()
        start = distributed.rank() * num_rows
        own = [gradient[start : start + num_rows] for gradient in gradients]
        for index in range(len(outputs)):
            pieces.take(outputs[index], [gradient[pieces.rows(num_rows, index)] for gradient in own])
            outputs[index] = []  # lets its graph go
        return (None, None, None, *[None] * len(gradients))


def _gathered(outputs: list[list[Tensor]]) -> list[Tensor]:
    return [distributed.gathered(torch.cat(view)) for view in zip(*outputs, strict=True)]


def _repeated(values_P: Tensor, sizes: Sequence[int]) -> Tensor:
    # `repeat_interleave` would wait for the device to say how long the result is
    return torch.cat([value.expand(size) for value, size in zip(values_P.unbind(), sizes, strict=True)])


def _seed(seed: int, index: int) -> int:
    return int(hash64(seed % 2**63, index)) >> 1
