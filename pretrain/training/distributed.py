"""What ranks do together: averaging gradients, agreeing on numbers.

Everything is a no-op with one rank, so the same code runs without a process group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Ranks in the process group; 1 when there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 when there is no process group."""
    return dist.get_rank() if world_size() > 1 else 0


def summed(numbers: Sequence[float], device: torch.device) -> list[float]:
    """Sums each number over ranks, in float64."""
    if world_size() == 1:
        return [float(number) for number in numbers]
    tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(number) for number in tensor.tolist()]


def gathered(tensor: Tensor) -> Tensor:
    """Concatenates equally shaped tensors of all ranks along the first axis, in the order of ranks;
    no gradient.
    """
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def summed_tensor(tensor: Tensor) -> Tensor:
    """The sum of equally shaped tensors of all ranks; no gradient."""
    if world_size() == 1:
        return tensor
    # gradients may be transposed views, which NCCL refuses
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def gathered_objects(value: Any) -> list[Any]:
    """Every rank's small object, in the order of ranks, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_0(value: Any) -> Any:
    """Rank 0's small object on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def equalise(module: nn.Module) -> None:
    """Gives every rank rank 0's parameters and buffers."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0)


class _Gathered(torch.autograd.Function):
    """All ranks' rows; each rank's gradient is the sum of what all ranks' losses want of its rows."""

    @staticmethod
    def forward(_: object, tensor: Tensor) -> Tensor:
        return gathered(tensor)

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        total = summed_tensor(gradient)
        rows = len(total) // world_size()
        return total[rank() * rows : (rank() + 1) * rows]


class Ranks(NamedTuple):
    """Processes that share a batch, as a loss over the global batch sees them."""

    rank: int
    world_size: int

    def gathered(self, tensor: Tensor) -> Tensor:
        """The rows of all ranks [B_global, ...], in the order of ranks; no gradient."""
        return tensor if self.world_size == 1 else gathered(tensor)

    def global_batch(self, tensor: Tensor) -> Tensor:
        """The rows of all ranks [B_global, ...], with gradient.

        A loss over them is computed on every rank alike,
        and its gradients averaged over ranks equal those of one process.
        """
        return tensor if self.world_size == 1 else _Gathered.apply(tensor)


ALONE = Ranks(0, 1)


def all_ranks() -> Ranks:
    """Those of the process group."""
    return Ranks(rank(), world_size())


class GradientAverager:
    """Averages gradients over ranks while the backward pass still runs, in buckets that never change.

    DistributedDataParallel rebuilds its buckets after the first backward pass, so that a resumed run adds up
    its first step in another order than the run that went on; with three ranks or more that changes bits.
    Here the buckets follow the order of the parameters alone, and are sent in their own order, whichever is
    ready first. Call `finish()` after `backward()`; unused parameters count as zero gradients.

    Args:
        parameters: those that require gradients are trained; in the same order on every rank.
        bucket_bytes: gradients sent in one message.

    Attributes:
        loss_weight, chance: see `pretrain.training.contract.GradientExchange`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, bucket_bytes: int = 25 * 2**20) -> None:
        self._buckets: list[_Bucket] = []
        self.loss_weight, self.chance = 1 / world_size(), rank()
        if world_size() == 1:
            return
        # gradients become ready from the last layer to the first
        for parameter in reversed([p for p in parameters if p.requires_grad]):
            last = self._buckets[-1] if self._buckets else None
            if last is None or not last.takes(parameter, bucket_bytes):
                self._buckets.append(last := _Bucket(parameter.dtype, parameter.device))
            last.parameters.append(parameter)
        for bucket in self._buckets:
            bucket.allocate()
            for index, parameter in enumerate(bucket.parameters):
                parameter.register_post_accumulate_grad_hook(self._hook(bucket, index))
        self._sent = 0

    def _hook(self, bucket: _Bucket, index: int) -> Any:
        def ready(parameter: Tensor) -> None:
            assert parameter.grad is not None
            bucket.views[index].copy_(parameter.grad)
            bucket.ready.add(index)
            while self._sent < len(self._buckets) and self._buckets[self._sent].complete:
                self._buckets[self._sent].send()
                self._sent += 1

        return ready

    def whole(self, tensor: Tensor) -> Tensor:
        """The rows of all ranks, [B_global, ...]; no gradient."""
        return gathered(tensor)

    def finish(self) -> None:
        """Waits for all buckets; afterwards `.grad` of every parameter is the average over ranks."""
        if not self._buckets:
            return
        for bucket in self._buckets[self._sent :]:
            for index in set(range(len(bucket.parameters))) - bucket.ready:
                bucket.views[index].zero_()
            bucket.send()
        for bucket in self._buckets:
            bucket.receive()
        self._sent = 0


class _Bucket:
    """Neighbouring parameters whose gradients travel in one message."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.parameters: list[nn.Parameter] = []
        self.views: list[Tensor] = []
        self.ready: set[int] = set()
        self._flat = torch.empty(0)
        self._work: Any = None

    def takes(self, parameter: nn.Parameter, bucket_bytes: int) -> bool:
        size = sum(p.numel() * p.element_size() for p in self.parameters)
        return (parameter.dtype, parameter.device) == (self.dtype, self.device) and size < bucket_bytes

    def allocate(self) -> None:
        self._flat = torch.zeros(
            sum(p.numel() for p in self.parameters), dtype=self.dtype, device=self.device
        )
        start = 0
        for parameter in self.parameters:
            # same strides as the parameter: fused optimizers walk both in memory order
            self.views.append(self._flat.as_strided(parameter.size(), parameter.stride(), start))
            start += parameter.numel()

    @property
    def complete(self) -> bool:
        return len(self.ready) == len(self.parameters)

    def send(self) -> None:
        self._flat.div_(world_size())
        self._work = dist.all_reduce(self._flat, async_op=True)

    def receive(self) -> None:
        self._work.wait()
        for parameter, view in zip(self.parameters, self.views, strict=True):
            parameter.grad = view
        self.ready.clear()
