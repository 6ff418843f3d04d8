"""The one training loop, for pretraining and for every fine-tuning task.

It reads downwards: resume, then for each step take a batch, forward, backward, agree over ranks, move the optimizer, and from
time to time evaluate, log and write a checkpoint. No callbacks and no events; what varies is in the `Plan` and in the module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from cluster.training.rank_context import RankContext
from pretrain.training.checkpoints import Progress
from pretrain.training.contract import Batches, Trainable, UnusableRows
from pretrain.training.distributed import equalise, summed
from pretrain.training.logbook import Logbook
from pretrain.training.plan import Plan
from pretrain.training.resuming import resume
from pretrain.training.rules import check_finite, out_of_memory
from pretrain.training.run_folder import RunFolder
from pretrain.training.stepping import Stepper


@dataclass(frozen=True)
class Outcome:
    """How the loop ended: `finished` or `interrupted` (a checkpoint is written, the same command goes on)."""

    status: str
    progress: Progress


def train(
    module: Trainable,
    optimizer: Optimizer,
    plan: Plan,
    *,
    context: RankContext,
    run: RunFolder | None,
    batches_from: Callable[[int], Batches],
) -> Outcome:
    """Trains by the plan, from the newest checkpoint in `plan.out` when there is one.

    Args:
        run: writer of the run folder on rank 0, None on the other ranks.
        batches_from: gives the batches from a number of samples seen (over all ranks) on.

    Raises RunStopped when a rule ended the run, and UserError when a step does not fit into memory; what was logged until then
    is kept.
    """
    equalise(module)
    progress, writer = resume(module, optimizer, plan, context, run)
    stepper = Stepper(module, optimizer, plan, context.device)
    book = Logbook(module, optimizer, progress, plan, context, run, writer)
    status, skipped_in_a_row = "finished", 0
    module.train()
    batches = batches_from(progress.samples_seen)
    try:
        while not book.over:
            with book.clock.waiting():
                batch = next(batches)
            progress.bad_rows.update(batch.bad_rows)
            gradients = stepper.backward(batch.inputs, progress.step)

            # -- what all ranks must know, in one message -----------------------------------------------------------------
            loss, unsound, stops, asked, num_bad_rows = summed(
                [
                    gradients.loss * stepper.exchange.loss_weight,
                    not gradients.sound,
                    context.stop_requested(),
                    book.wants_checkpoint(),
                    len(batch.bad_rows),
                ],
                context.device,
            )

            # -- the optimizer moves on sound gradients only --------------------------------------------------------------
            if unsound:
                skipped_in_a_row += 1
                progress.skipped_steps += 1
                check_finite(plan.training.on_nonfinite, progress.step, gradients, skipped_in_a_row)
                context.warn(f"step {progress.step} skipped: loss or gradient is not finite")
            else:
                skipped_in_a_row = 0
                progress.loss_sum += loss
                progress.loss_count += 1
            stepper.move(progress.step, sound=not unsound)
            book.count_step(int(num_bad_rows))

            # -- from time to time: evaluate, log, checkpoint -------------------------------------------------------------
            book.tell_troubles()
            numbers = book.evaluate_when_due()
            book.log_when_due(gradients, stepper.exchange, numbers)
            if stops and not book.over:
                status = "interrupted"
            book.write_checkpoint_when_due(asked=bool(asked), stops=bool(stops))
            if stops:
                break
    except torch.OutOfMemoryError as error:
        raise out_of_memory(plan, context, error) from error
    except UnusableRows as error:
        progress.bad_rows.update(error.bad_rows)
        raise
    finally:
        batches.close()
        book.close()
    book.finish()
    return Outcome(status, progress)
