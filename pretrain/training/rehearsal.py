"""What `--check` does in place of training: a first batch, a few steps that are thrown away,
and an estimate from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.optim import Optimizer

from cluster.durations import duration
from cluster.errors import UserError
from cluster.training.memory import GIB, peak_bytes
from cluster.training.rank_context import RankContext
from pretrain.training.checkpoints import Progress
from pretrain.training.contract import Batches, Trainable
from pretrain.training.loop import Outcome
from pretrain.training.plan import Plan
from pretrain.training.rules import out_of_memory
from pretrain.training.run_folder import RunFolder
from pretrain.training.stepping import Stepper

# after one that warms up; the fastest counts, since everything else can only slow a step down
NUM_TIMED_STEPS = 3


def rehearse(
    module: Trainable,
    optimizer: Optimizer,
    plan: Plan,
    *,
    context: RankContext,
    run: RunFolder | None,
    batches_from: Callable[[int], Batches],
) -> Outcome:
    """Takes what `pretrain.training.loop.train` takes,
    and reports how long a run would take and what memory it needs.

    The steps are those of training. Nothing is written, and no other worker is contacted: `context` may be
    rank 0 of several that are not there. The steps run on this machine,
    so the estimate holds for workers like it.

    Raises UserError when a batch does not fit into memory.
    """
    device, num_workers = context.device, context.world_size
    share, num_steps = plan.training.batch_size_global // num_workers, plan.num_steps
    started = time.monotonic()
    batches = batches_from(0)
    try:
        batch = next(batches)
        first_batch_seconds = time.monotonic() - started
        bad = f", {len(batch.bad_rows)} bad rows replaced" if batch.bad_rows else ""
        context.note(
            f"first batch of a worker: {share} images read and decoded in "
            f"{duration(first_batch_seconds)}{bad}"
        )
        module.train()
        stepper = Stepper(module, optimizer, plan, device)
        step_seconds, wait_seconds = [], []
        for index in range(1 + NUM_TIMED_STEPS):
            begun = time.monotonic()
            gradients = stepper.backward(batch.inputs, index)
            stepper.move(index, unsound=(~gradients.sound).float())
            sound = bool(gradients.sound)  # waits for the device, so that a step's time is that of its work
            stepped = time.monotonic()
            batch = next(batches)
            step_seconds.append(stepped - begun)
            wait_seconds.append(time.monotonic() - stepped)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise out_of_memory(plan, context, error) from error
    finally:
        batches.close()
    context.note(f"memory of a worker: {_memory(device)}")
    if not sound:
        raise UserError(
            f"the loss of the first steps is {float(gradients.loss)}: choose a lower optimizer.learning_rate"
        )
    step, wait = min(step_seconds[1:]), min(wait_seconds[1:])
    workers = f"{num_workers} workers" if num_workers > 1 else "1 worker"
    context.note(
        f"time: {num_steps} steps of {step + wait:.2f} s ({wait / (step + wait):.0%} of it waiting for "
        f"data) are about {duration(num_steps * (step + wait))} with {workers} like this machine",
    )
    return Outcome("rehearsed", Progress())


def _memory(device: torch.device) -> str:
    text = f"about {peak_bytes() / GIB:.1f} GiB"
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        text += (
            f", and {torch.cuda.max_memory_reserved(device) / GIB:.1f} of {total / GIB:.0f} GiB on {device}"
        )
    return text
