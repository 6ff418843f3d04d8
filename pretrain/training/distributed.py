"""What ranks do together: averaging gradients, agreeing on numbers, batch norm over the whole global batch.

Everything is a no-op with one rank, so the same code runs without a process group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


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
    """Concatenates equally shaped tensors of all ranks along the first axis, in the order of ranks; no gradient."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def summed_tensor(tensor: Tensor) -> Tensor:
    """The sum of equally shaped tensors of all ranks; no gradient."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
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

        A loss over them is computed on every rank alike, and its gradients averaged over ranks equal those of one process.
        """
        return tensor if self.world_size == 1 else _Gathered.apply(tensor)


ALONE = Ranks(0, 1)


def all_ranks() -> Ranks:
    """Those of the process group."""
    return Ranks(rank(), world_size())


class GradientAverager:
    """Averages gradients over ranks while the backward pass still runs, in buckets that never change.

    DistributedDataParallel rebuilds its buckets after the first backward pass, so that a resumed run adds up its first step
    in another order than the run that went on; with three ranks or more that changes bits. Here the buckets follow the
    order of the parameters alone, and are sent in their own order, whichever is ready first. Call `finish()` after
    `backward()`; unused parameters count as zero gradients.

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
        self._flat = torch.zeros(sum(p.numel() for p in self.parameters), dtype=self.dtype, device=self.device)
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


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks whose gradient is summed over ranks as well: every rank's loss depends on every rank's input."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        return summed_tensor(tensor)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return summed_tensor(gradient)


class BatchNormOverRanks(_BatchNorm):
    """Batch norm with the statistics of the global batch, on any device (torch's SyncBatchNorm refuses CPU tensors).

    Input [B, C, ...] with the same B on every rank. Two passes (mean, then squares around it), as exact as one process.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 axes, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalises over all axes but the second."""
        self._check_input_dim(input)
        if not self.training or world_size() == 1:
            return super().forward(input)
        axes = [0, *range(2, input.dim())]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        count = input.numel() // input.shape[1] * world_size()
        mean = _SumOverRanks.apply(input.sum(axes)) / count
        centred = input - mean.view(shape)
        variance = _SumOverRanks.apply(centred.square().sum(axes)) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                unbiased = variance * (count / max(count - 1, 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        normalised = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> int:
    """Makes every batch norm inside `module` use the global batch; names and values in its state stay. Returns how many.

    Does nothing with one rank.
    """
    if world_size() == 1:
        return 0
    found = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, BatchNormOverRanks | nn.SyncBatchNorm):
                setattr(parent, name, _synchronised(child, device))
                found += 1
    return found


def _synchronised(norm: _BatchNorm, device: torch.device) -> nn.Module:
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    new = BatchNormOverRanks(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
    )
    for name, parameter in norm.named_parameters():
        setattr(new, name, parameter)
    for name, buffer in norm.named_buffers():
        setattr(new, name, buffer)
    return new.train(norm.training)
