"""What `--check` does in place of training: a first batch, a few steps that are thrown away, and what they foretell."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from cluster.errors import UserError
from cluster.memory import GIB, peak_bytes
from cluster.place import Place
from pretrain.training.checkpoints import Progress
from pretrain.training.console import duration
from pretrain.training.contract import Batches
from pretrain.training.loop import Outcome, autocast_for

NUM_TIMED_STEPS = 3  # after one that warms up; the fastest counts, since everything else can only slow a step down


def rehearse(
    module: nn.Module,
    optimizer: Optimizer,
    *,
    place: Place,
    batches_from: Callable[[int], Batches],
    num_steps: int,
    batch_size_global: int,
    precision: str = "auto",
    **unused: Any,
) -> Outcome:
    """Takes what `pretrain.training.loop.train` takes, and reports how long a run would take and what memory it needs.

    Nothing is written, and no other worker is spoken to: `place` may be rank 0 of several that are not there. The steps run
    on this machine, so the estimate holds for workers like it.

    Raises UserError when a batch does not fit into memory.
    """
    device, num_workers, pieces = place.device, place.world_size, getattr(module, "pieces", None)
    started = time.monotonic()
    batches = batches_from(0)
    try:
        batch = next(batches)
        first_batch_seconds = time.monotonic() - started
        bad = f", {len(batch.bad_rows)} bad rows replaced" if batch.bad_rows else ""
        size = batch_size_global // num_workers
        _say(place, f"first batch of a worker: {size} images read and decoded in {first_batch_seconds:.1f} s{bad}")
        module.train()
        autocast = autocast_for(precision, device)
        step_seconds, wait_seconds = [], []
        for _ in range(1 + NUM_TIMED_STEPS):
            begun = time.monotonic()
            with autocast():
                output = module(batch.inputs)
            output.loss.backward()
            if pieces is not None:
                pieces.finish()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss = float(output.loss.detach())
            stepped = time.monotonic()
            batch = next(batches)
            step_seconds.append(stepped - begun)
            wait_seconds.append(time.monotonic() - stepped)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UserError(
            f"a batch of {batch_size_global // num_workers} images a worker does not fit into the memory of {device}; "
            "choose a smaller training.batch_size_global, smaller images, or more workers"
        ) from error
    finally:
        batches.close()
    _say(place, f"memory of a worker: {_memory(device)}")
    if not torch.isfinite(torch.tensor(loss)):
        raise UserError(f"the loss of the first steps is {loss}: choose a lower optimizer.learning_rate")
    step, wait = min(step_seconds[1:]), min(wait_seconds[1:])
    workers = f"{num_workers} workers" if num_workers > 1 else "1 worker"
    _say(
        place,
        f"time: {num_steps} steps of {step + wait:.2f} s ({wait / (step + wait):.0%} of it waiting for data) are about "
        f"{duration(num_steps * (step + wait))} with {workers} like this machine",
    )
    return Outcome("rehearsed", Progress())


def _say(place: Place, text: str) -> None:
    place.report({"kind": "note", "text": text})


def _memory(device: torch.device) -> str:
    text = f"about {peak_bytes() / GIB:.1f} GiB"
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        text += f", and {torch.cuda.max_memory_reserved(device) / GIB:.1f} of {total / GIB:.0f} GiB on {device}"
    return text
