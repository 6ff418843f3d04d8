"""Where a run begins: at step 0, or at the newest complete checkpoint, the same on every rank."""

from __future__ import annotations

from torch.optim import Optimizer

from cluster.errors import UserError
from cluster.training.rank_context import RankContext
from pretrain.training import checkpoints
from pretrain.training.checkpoints import Checkpoint, CheckpointWriter, CutOff, Progress
from pretrain.training.contract import Trainable
from pretrain.training.data_identity import check_same
from pretrain.training.distributed import from_rank_0
from pretrain.training.parent import begin, chosen_step
from pretrain.training.plan import Plan
from pretrain.training.run_folder import RunFolder, tell_device


def resume(
    module: Trainable, optimizer: Optimizer, plan: Plan, context: RankContext, run: RunFolder | None
) -> tuple[Progress, CheckpointWriter | None]:
    """Restores module and optimizer, and says where the run is.
    The writer is rank 0's, who has the run folder.

    Raises UserError where no checkpoint can be used, or one that another rank has is not seen.
    """
    found = checkpoints.find_newest(plan.out) if context.rank == 0 else CutOff()
    checkpoint = found if isinstance(found, Checkpoint) else None
    passed_over = checkpoint.passed_over if checkpoint is not None else {}
    for name, reason in passed_over.items():
        context.warn(f"the checkpoint {name} cannot be used: {reason}")
    if isinstance(found, CutOff) and found.names:
        context.note(
            f"starts at step 0: the first checkpoint was not complete yet ({', '.join(found.names)})"
        )

    # rank 0 chooses, so that all ranks start from the same checkpoint
    step = from_rank_0(checkpoint.progress.step if checkpoint is not None else None)
    if step is not None and checkpoint is None:
        checkpoint = checkpoints.load_newest(plan.out, at_step=step)
        if checkpoint is None:
            raise UserError(
                f"rank {context.rank} does not see the checkpoint of step {step} in {plan.out}; "
                "with workers on several machines, out must be a storage that all of them reach"
            )
    whole_step = step
    parent, on_change, of = plan.training.parent, plan.on_data_change, plan.out
    if checkpoint is None and parent is not None:
        step = from_rank_0(chosen_step(parent) if context.rank == 0 else None)
        batch = plan.training.batch_size_global
        checkpoint = begin(parent, step, num_steps=plan.num_steps, batch_size_global=batch)
        on_change, of = "continue", parent
    progress = Progress()
    if checkpoint is not None:
        checkpoints.restore(checkpoint, module, optimizer)
        progress = checkpoint.progress
        for change in check_same(progress.data, plan.data, on_change=on_change, out=plan.out):
            context.warn(f"continues with other data: {change}")
        context.note(f"continues at step {progress.step} of {plan.num_steps} ({of})")
    progress.data = dict(plan.data or progress.data)
    if run is None:
        return progress, None

    tell_device(plan.out, f"{context.device_name}, {context.world_size} workers")
    keep = plan.training.keep_checkpoints
    writer = CheckpointWriter(
        plan.out, keep=keep, troubles=run.troubles, damaged=passed_over, whole_step=whole_step
    )
    last_step = run.start_at(progress.step, first_step=progress.step if whole_step is None else 0)
    restart = run.restarts.begin(
        context, from_step=progress.step, last_step=last_step, passed_over=passed_over
    )
    progress.restart_log, progress.restarts = run.restarts.entries, len(run.restarts.entries)
    if restart is not None:
        again = f"; {restart.lost_steps} steps are repeated" if restart.lost_steps else ""
        context.note(f"restart {progress.restarts}: {restart.why}{again}")
    return progress, writer
