"""One training step: forward, backward, and the optimizer's update. The loop and `--check` share it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.data.hashing import hash64
from pretrain.training.activation_checkpointing import BlockStatistics
from pretrain.training.contract import StepOutput, Trainable
from pretrain.training.optimizers import move_unless, set_rates
from pretrain.training.plan import Plan


@dataclass(frozen=True)
class Gradients:
    """What a backward pass left beside `.grad`: the loss of this rank,
    and the norm over the global batch's gradient.

    Both are scalars on the device, which may not have come as far; to look at them is to wait.
    """

    output: StepOutput
    loss: Tensor
    norm: Tensor
    learning_rate: float

    @property
    def sound(self) -> Tensor:
        """Whether the optimizer may move by them: a bool on the device."""
        return (self.loss + self.norm).isfinite()


class Stepper:
    """Takes a plan's steps on one rank. `exchange` is the module's, see `pretrain.training.contract`."""

    def __init__(self, module: Trainable, optimizer: Optimizer, plan: Plan, device: torch.device) -> None:
        self._module, self._optimizer, self._plan = module, optimizer, plan
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._autocast = autocast_for(plan.training.precision, device)
        self._max_norm = plan.training.clip_gradient or math.inf
        self.exchange = module.exchange()
        self._while_backward: Callable[[], AbstractContextManager[None]] = nullcontext
        if plan.training.activation_checkpointing:
            self._while_backward = BlockStatistics(module).kept

    def backward(self, inputs: Any, step: int) -> Gradients:
        """Leaves the gradient of the global batch's loss in `.grad`, clipped where the plan says so."""
        # random layers (drop path, dropout) draw from the step and the rank, so that a resumed step repeats
        seed_draws(int(hash64(self._plan.seed, step, self.exchange.chance)) >> 1)
        rates = self._plan.rates_at(step)
        set_rates(self._optimizer, rates)
        with self._autocast():
            output: StepOutput = self._module(inputs)
        with self._while_backward():
            output.loss.backward()
        self.exchange.finish()
        norm = nn.utils.clip_grad_norm_(self._parameters, self._max_norm, foreach=True)
        return Gradients(output, output.loss.detach().double(), norm, rates.learning_rate)

    def move(self, step: int, *, unsound: Tensor) -> None:
        """Moves the optimizer, unless `unsound` (a scalar on the device) is 1, and what the module moves."""
        move_unless(unsound, self._optimizer)
        self._optimizer.zero_grad(set_to_none=True)
        self._module.after_step(step, self._plan.num_steps)


def seed_draws(seed: int) -> None:
    """`torch.manual_seed`, which without any accelerator takes milliseconds to leave word for all kinds."""
    (torch if torch.accelerator.is_available() else torch.default_generator).manual_seed(seed)


def autocast_for(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Of `float32`, `bfloat16`, or `auto`: bfloat16 on CUDA and float32 on the CPU."""
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return nullcontext
