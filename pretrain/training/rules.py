"""The rules that end a run: non-finite numbers, and too many unusable rows."""

from __future__ import annotations

from cluster.errors import RunStopped, UserError, first_line
from cluster.training.rank_context import RankContext
from pretrain.training.agreement import Agreement
from pretrain.training.checkpoints import Progress
from pretrain.training.plan import Plan

MAX_SKIPPED_IN_A_ROW = 10


def check_finite(rule: str, agreement: Agreement, in_a_row: int) -> None:
    """Raises RunStopped for a step whose numbers are not finite,
    unless the rule is `skip` and it is not the tenth in a row.
    """
    if rule == "skip" and in_a_row < MAX_SKIPPED_IN_A_ROW:
        return
    many = f", {in_a_row} times in a row" if in_a_row > 1 else ""
    raise RunStopped(
        f"step {agreement.step}: the loss ({float(agreement.loss):g}) or the gradient (norm "
        f"{float(agreement.norm):g}) is not finite{many}; the parameters were not changed by it. A lower "
        f"learning rate (now {agreement.learning_rate:g}), a longer warm-up or training.clip_gradient=1 "
        "usually helps; the last checkpoint is from before it"
    )


def out_of_memory(plan: Plan, context: RankContext, error: BaseException) -> UserError:
    """What to do where a step does not fit: the user must change something, a restart would not help."""
    batch, size = plan.training.batch_size_global, plan.training.batch_size_global // context.world_size
    less = "" if plan.training.activation_checkpointing else "training.activation_checkpointing=true, "
    said = first_line(error)
    return UserError(
        f"a step of {size} images on each of {context.world_size} workers does not fit into the memory of "
        f"{context.device_name} ({said}); choose {less}a smaller training.batch_size_global (now {batch}), "
        "method.images_per_pass in pretraining, smaller or fewer views, or more workers"
    )


def evaluation_out_of_memory(step: int, context: RankContext, error: BaseException) -> UserError:
    """Where steps fit but an evaluation does not."""
    said = first_line(error)
    return UserError(
        f"the evaluation after step {step} does not fit into the memory of {context.device_name} ({said}), "
        "though the steps do; in pretraining choose knn.linear=false or fewer images in knn.train_url, in "
        "fine-tuning a smaller image_size; the last checkpoint is from before it"
    )


def too_many_bad(
    progress: Progress, samples_seen: int, max_fraction: float, rows_per_epoch: int
) -> str | None:
    """In words that more rows are bad than may be of so many seen, None where they are not.

    They often lie together, so a fraction means little before all rows were seen: until then it is that of
    an epoch's rows. Ten are always allowed.
    """
    if progress.bad_row_count <= max(10, max_fraction * max(samples_seen, rows_per_epoch)):
        return None
    some = "; ".join(f"{where}: {reason}" for where, reason in list(progress.bad_rows.items())[:3])
    return (
        f"{progress.bad_row_count} of {samples_seen} rows could not be used, more than "
        f"data.max_bad_fraction={max_fraction:g} allows ({some}); `python -m pretrain.data check` lists them"
    )
