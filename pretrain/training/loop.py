"""The one training loop, for pretraining and for every fine-tuning task.

It reads downwards: resume, then for each step take a batch, forward, backward, agree over ranks, move the
optimizer, and from time to time evaluate, log and write a checkpoint. No callbacks and no events; what
varies is in the `Plan` and in the module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from cluster.training.rank_context import RankContext
from pretrain.training.agreement import Agreement
from pretrain.training.checkpoints import Progress
from pretrain.training.contract import Batches, Trainable, UnusableRows
from pretrain.training.distributed import equalise
from pretrain.training.logbook import Logbook
from pretrain.training.plan import Plan
from pretrain.training.resuming import resume
from pretrain.training.rules import out_of_memory
from pretrain.training.run_folder import RunFolder
from pretrain.training.stepping import Stepper


@dataclass(frozen=True)
class Outcome:
    """How the loop ended: `finished` or `interrupted` (a checkpoint is there, the same command goes on)."""

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

    Raises RunStopped when a rule ended the run, and UserError when a step does not fit into memory; what was
    logged until then is kept.
    """
    equalise(module)
    progress, writer = resume(module, optimizer, plan, context, run)
    stepper = Stepper(module, optimizer, plan, context.device)
    book = Logbook(module, optimizer, progress, plan, context, run, writer)
    status = "finished"
    former: Agreement | None = None  # of the step before, as long as nobody has looked at it
    module.train()
    batches = batches_from(progress.samples_seen)
    try:
        while not book.over:
            with book.clock.waiting():
                batch = next(batches)
            progress.bad_rows.update(batch.bad_rows)
            gradients = stepper.backward(batch.inputs, progress.step)

            # -- what all ranks must know, in one message; nobody waits for it here -------------------------
            agreement = Agreement(
                gradients,
                step=progress.step,
                samples_seen=progress.samples_seen + plan.training.batch_size_global,
                loss_weight=stepper.exchange.loss_weight,
                stops=context.stop_requested(),
                asked=book.wants_checkpoint(),
                num_bad_rows=len(batch.bad_rows),
            )

            # -- the numbers of the step before, while the device is at this one; of this one where they are
            told = [book.settle(former)] if former is not None else []
            former = agreement
            if book.is_due(progress.step + 1) or any(numbers.stops or numbers.asked for numbers in told):
                told.append(book.settle(agreement))
                former = None

            # -- the optimizer moves on sound gradients only ------------------------------------------------
            stepper.move(progress.step, unsound=agreement.unsound)
            book.count_step()

            # -- from time to time: evaluate, log, checkpoint -----------------------------------------------
            book.tell_troubles()
            scores = book.evaluate_when_due()
            book.log_when_due(gradients, stepper.exchange, scores)
            stops = any(numbers.stops for numbers in told)
            if stops and not book.over:
                status = "interrupted"
            book.write_checkpoint_when_due(asked=any(numbers.asked for numbers in told), stops=stops)
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
