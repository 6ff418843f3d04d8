"""The one training loop, for pretraining and for every fine-tuning task.

It reads downwards: resume, then for each step take a batch, forward, backward, agree over ranks, move the optimizer, and from
time to time log, evaluate and write a checkpoint. No callbacks and no events; what varies comes in as arguments.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from cluster import storage
from cluster.errors import RunStopped, UserError
from cluster.place import Place
from pretrain.data.hashing import hash64
from pretrain.training import checkpoints, health
from pretrain.training.checkpoints import Checkpoint, CheckpointWriter, CutOff, Progress
from pretrain.training.clock import Clock
from pretrain.training.contract import Batches, StepOutput, UnusableRows
from pretrain.training.data_identity import Identity, check_same
from pretrain.training.distributed import (
    GradientAverager,
    equalise,
    from_rank_0,
    gathered,
    gathered_objects,
    summed,
    world_size,
)
from pretrain.training.optimizers import Rates, set_rates
from pretrain.training.run_folder import RunFolder

FAILED_CHECKPOINT_SECONDS = 30.0  # after one that could not be written the next is not long in coming


@dataclass(frozen=True)
class Outcome:
    """How the loop ended: `finished` or `interrupted` (a checkpoint is written, the same command goes on)."""

    status: str
    progress: Progress


def train(
    module: nn.Module,
    optimizer: Optimizer,
    *,
    place: Place,
    run: RunFolder | None,
    run_url: str,
    batches_from: Callable[[int], Batches],
    num_steps: int,
    batch_size_global: int,
    steps_per_epoch: int,
    rates_at: Callable[[int], Rates],
    seed: int,
    precision: str = "auto",
    clip_gradient: float = 0.0,
    on_nonfinite: str = "stop",
    on_collapse: str = "warn",
    max_bad_share: float = 0.05,
    log_every_steps: int = 20,
    checkpoint_every_steps: int = 1000,
    checkpoint_every_seconds: float = 600.0,
    keep_checkpoints: int = 2,
    evaluate: Callable[[int, bool], dict[str, float]] | None = None,
    evaluate_every_steps: int = 0,
    best_metric: str | None = None,
    best_is_lowest: bool = False,
    keep_best: Callable[[int], None] | None = None,
    patience: int = 0,
    data: Mapping[str, Identity] | None = None,
    on_data_change: str = "refuse",
) -> Outcome:
    """Trains until `num_steps`, from the newest checkpoint in `run_url` when there is one.

    Args:
        module: `forward(inputs) -> StepOutput`; may have `after_step(step, num_steps)`, and `health()` that gives numbers to
            be logged. All of its state is in its state_dict.
        run: writer of the run folder on rank 0, None on the other ranks.
        batches_from: gives the batches from a number of samples seen (over all ranks) on.
        rates_at: learning rates and weight decay of a step.
        precision: `float32`, `bfloat16` (autocast), or `auto`: bfloat16 on CUDA and float32 on the CPU.
        clip_gradient: largest global gradient norm; 0 for none.
        on_nonfinite: `stop` with an explanation, or `skip` the step (the optimizer never moves on it).
        on_collapse: `warn` or `stop`.
        max_bad_share: of the rows of an epoch, and later of all that were seen: the run stops when more are bad.
        evaluate: called with the step, and whether it is the last, on every rank at the given steps and after the last; its
            numbers are logged.
        best_metric, best_is_lowest, keep_best: `keep_best(step)` is called on every rank when this number of `evaluate` is its
            highest (or lowest) so far.
        patience: evaluations in a row without a better number after which training is finished; 0 for any number.
        data: what is learnt from, on rank 0; with other data than before a run goes on where `on_data_change` is `continue`.

    Raises RunStopped when a rule ended the run; what was logged until then is kept.
    """
    device = place.device
    equalise(module)

    # -- resume: rank 0 chooses, so that all ranks start from the same checkpoint --------------------------------------
    found = checkpoints.find_newest(run_url) if place.rank == 0 else CutOff()
    checkpoint = found if isinstance(found, Checkpoint) else None
    passed_over = checkpoint.passed_over if checkpoint is not None else {}
    for name, reason in passed_over.items():
        place.report({"kind": "warning", "text": f"the checkpoint {name} cannot be used: {reason}"})
    if isinstance(found, CutOff) and found.names:
        names = ", ".join(found.names)
        place.report({"kind": "note", "text": f"starts at step 0: the first checkpoint was not complete yet ({names})"})
    step = from_rank_0(checkpoint.progress.step if checkpoint is not None else None)
    if step is not None and checkpoint is None:
        checkpoint = checkpoints.load_newest(run_url, at_step=step)
        if checkpoint is None:
            raise UserError(
                f"rank {place.rank} does not see the checkpoint of step {step} in {run_url}; "
                "with workers on several machines, out must be a storage that all of them reach"
            )
    progress = Progress()
    if checkpoint is not None:
        checkpoints.restore(checkpoint, module, optimizer)
        progress = checkpoint.progress
        for change in check_same(progress.data, data or {}, on_change=on_data_change, out=run_url):
            place.report({"kind": "warning", "text": f"goes on with other data: {change}"})
        place.report({"kind": "note", "text": f"continues at step {progress.step} of {num_steps} ({run_url})"})
    progress.data = dict(data or progress.data)
    writer = None
    if run is not None:
        writer = CheckpointWriter(run_url, keep=keep_checkpoints, troubles=run.troubles, damaged=passed_over)
        last_step = run.start_at(progress.step)
        restart = run.restarts.begin(place, from_step=progress.step, last_step=last_step, passed_over=passed_over)
        progress.restart_log, progress.restarts = run.restarts.entries, len(run.restarts.entries)
        if restart is not None:
            again = f"; {restart.lost_steps} steps are taken again" if restart.lost_steps else ""
            place.report({"kind": "note", "text": f"restart {progress.restarts}: {restart.why}{again}"})

    # -- what every step needs ------------------------------------------------------------------------------------------
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    pieces = getattr(module, "pieces", None)
    gradients = pieces or GradientAverager(p for p in module.parameters() if p.requires_grad)
    # what a rank's loss counts for, and what its random layers draw from
    share, chance = (1 / place.world_size, place.rank) if pieces is None else (float(place.rank == 0), 0)
    autocast = autocast_for(precision, device)
    after_step, state_health = getattr(module, "after_step", None), getattr(module, "health", None)
    clock = Clock(progress.seconds)
    watch = health.HealthWatch(num_steps=num_steps, batch_size_global=batch_size_global)
    warned: set[str] = set()
    skipped_in_a_row = 0
    checkpointed_at = time.monotonic()
    module.train()
    batches = batches_from(progress.samples_seen)

    def write_checkpoint(*, ends: bool) -> None:
        nonlocal checkpointed_at
        progress.seconds = clock.total()
        for rows in gathered_objects(progress.bad_rows):
            progress.bad_rows.update(rows)
        if run is not None and writer is not None:
            writer.write(module, optimizer, progress, first=run.sync, needed=ends)
        checkpointed_at = time.monotonic()

    def tell_troubles() -> None:
        while run is not None and run.troubles:
            progress.failed_writes += 1
            place.report({"kind": "warning", "text": run.troubles.popleft()})

    def evaluate_now() -> dict[str, float]:
        assert evaluate is not None
        with clock.paused():
            module.eval()
            numbers = evaluate(progress.step, progress.step == num_steps)
            module.train()
            score = numbers.get(best_metric) if best_metric else None
            if score is not None:
                former, sign = progress.best_score, -1.0 if best_is_lowest else 1.0
                progress.evaluations_since_best += 1
                better = math.isfinite(score) and (former is None or sign * score > sign * former)
                if better:
                    progress.best_score, progress.evaluations_since_best = score, 0
                if better or former is None:  # a run without any sound score keeps its newest model
                    progress.best_step = progress.step
                    if keep_best is not None:
                        keep_best(progress.step)
        for name, number in numbers.items():
            if math.isfinite(number):
                progress.metrics[name] = number
            else:  # neither JSON nor a report can hold it, and the former one is out of date
                progress.metrics.pop(name, None)
                place.report({"kind": "warning", "text": f"step {progress.step}: {name} is {number}"})
        return numbers

    def out_of_patience() -> bool:
        return 0 < patience <= progress.evaluations_since_best

    status = "finished"
    try:
        while progress.step < num_steps and not out_of_patience():
            # -- a batch -------------------------------------------------------------------------------------------------
            with clock.waiting():
                batch = next(batches)
            progress.bad_rows.update(batch.bad_rows)
            # random layers (drop path, dropout) draw from the step and the rank, so that a resumed step repeats
            torch.manual_seed(int(hash64(seed, progress.step, chance)) >> 1)
            rates = rates_at(progress.step)
            set_rates(optimizer, rates)

            # -- forward and backward -----------------------------------------------------------------------------------
            with autocast():
                output: StepOutput = module(batch.inputs)
            output.loss.backward()
            gradients.finish()
            gradient_norm = float(
                nn.utils.clip_grad_norm_(parameters, clip_gradient if clip_gradient > 0 else math.inf, foreach=True)
            )

            # -- what all ranks must know, in one message -----------------------------------------------------------------
            loss = float(output.loss.detach())
            most = FAILED_CHECKPOINT_SECONDS if writer is not None and writer.failed else checkpoint_every_seconds
            due = place.checkpoint_requested()
            due |= time.monotonic() - checkpointed_at > min(most, checkpoint_every_seconds)
            mean_loss, unsound, stops, dues, bad_rows = summed(
                [
                    loss * share,
                    not math.isfinite(loss + gradient_norm),
                    place.stop_requested(),
                    due and place.rank == 0,
                    len(batch.bad_rows),
                ],
                device,
            )

            # -- the optimizer moves on sound gradients only --------------------------------------------------------------
            if unsound:
                skipped_in_a_row += 1
                progress.skipped_steps += 1
                _refuse(on_nonfinite, progress.step, loss, gradient_norm, rates.learning_rate, skipped_in_a_row)
                place.report(
                    {"kind": "warning", "text": f"step {progress.step} skipped: loss or gradient is not finite"}
                )
            else:
                skipped_in_a_row = 0
                optimizer.step()
                progress.loss_sum += mean_loss
                progress.loss_count += 1
            optimizer.zero_grad(set_to_none=True)
            if after_step is not None:
                after_step(progress.step, num_steps)

            progress.step += 1
            progress.samples_seen += batch_size_global
            progress.bad_row_count += int(bad_rows)
            clock.count(batch_size_global)
            place.beat(progress.step)
            if run is not None and (seconds := run.restarts.step_taken()) is not None:
                place.report({"kind": "note", "text": f"recovered within {seconds:.1f} s"})
            last = progress.step == num_steps
            if (unusable := _too_many_bad(progress, max_bad_share, batch_size_global * steps_per_epoch)) is not None:
                for rows in gathered_objects(progress.bad_rows):
                    progress.bad_rows.update(rows)
                raise RunStopped(unusable)
            if "bad rows" not in warned and (unusable := _too_many_bad(progress, max_bad_share, 0)) is not None:
                warned.add("bad rows")
                text = f"step {progress.step}: {unusable}; the run stops when they are more than that share of all rows"
                place.report({"kind": "warning", "text": text})

            # -- from time to time: evaluate, log, checkpoint -------------------------------------------------------------
            numbers: dict[str, float] = {}
            tell_troubles()
            if evaluate is not None and (last or (evaluate_every_steps and progress.step % evaluate_every_steps == 0)):
                numbers = evaluate_now()
                if out_of_patience() and not last:
                    last = True
                    note = f"stops at step {progress.step} of {num_steps}: {patience} evaluations without a better one"
                    place.report({"kind": "note", "text": note})
            if progress.step % log_every_steps == 0 or last or numbers:
                state = {} if state_health is None else state_health()
                record = _record(
                    progress,
                    output,
                    state | numbers,
                    clock,
                    rates.learning_rate,
                    gradient_norm,
                    steps_per_epoch,
                    pieces,
                )
                findings = watch.look(progress.step, record, dim=_dim(output), chance_loss=output.chance_loss)
                if findings:
                    record["findings"] = {finding.kind: finding.text for finding in findings}
                if run is not None:
                    run.log(record)
                place.report({"kind": "progress", "num_steps": num_steps, **_finite_only(record)})
                for finding in findings:
                    if on_collapse == "stop" and finding.kind in health.COLLAPSES:
                        raise RunStopped(f"step {progress.step}: {finding.text}")
                    if finding.kind not in warned:
                        place.report({"kind": "warning", "text": f"step {progress.step}: {finding.text}"})
                    warned.add(finding.kind)
            if stops and not last:
                status = "interrupted"
            if last or stops or dues or progress.step % checkpoint_every_steps == 0:
                write_checkpoint(ends=bool(last or stops))
            if stops:
                break
    except UnusableRows as error:
        progress.bad_rows.update(error.bad_rows)
        raise
    finally:
        batches.close()
        if writer is not None:
            writer.join()  # whatever ended the run, a checkpoint under way is worth its seconds
        tell_troubles()
        if run is not None:
            if progress.bad_rows:
                run.write_bad_rows(progress.bad_rows)
            run.sync()
    if writer is not None:
        writer.wait()
    progress.seconds = clock.total()
    return Outcome(status, progress)


def autocast_for(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return nullcontext


def _refuse(rule: str, step: int, loss: float, gradient_norm: float, learning_rate: float, in_a_row: int) -> None:
    if rule == "skip" and in_a_row < 10:
        return
    many = f", {in_a_row} times in a row" if in_a_row > 1 else ""
    raise RunStopped(
        f"step {step}: the loss ({loss:g}) or the gradient (norm {gradient_norm:g}) is not finite{many}; the parameters were "
        f"not changed by it. A lower learning rate (now {learning_rate:g}), a longer warm-up or training.clip_gradient=1 "
        "usually helps; the last checkpoint is from before"
    )


def _too_many_bad(progress: Progress, max_share: float, rows_per_epoch: int) -> str | None:
    """In words that more rows are bad than may be, None where they are not.

    They often lie together, so a share means little before all rows were seen: until then it is that of an epoch's rows.
    Ten are always allowed.
    """
    if progress.bad_row_count <= max(10, max_share * max(progress.samples_seen, rows_per_epoch)):
        return None
    some = "; ".join(f"{place}: {reason}" for place, reason in list(progress.bad_rows.items())[:3])
    return (
        f"{progress.bad_row_count} of {progress.samples_seen} rows could not be used, more than "
        f"data.max_bad_share={max_share:g} allows ({some}); `python -m pretrain.data check` lists them"
    )


def _record(
    progress: Progress,
    output: StepOutput,
    numbers: dict[str, float],
    clock: Clock,
    learning_rate: float,
    gradient_norm: float,
    steps_per_epoch: int,
    pieces: Any,
) -> dict[str, Any]:
    """One line of metrics.jsonl; all ranks call it, because health looks at the embeddings of all."""
    logs = sorted(output.logs)
    *means, num_retries = summed([*(float(output.logs[name]) for name in logs), storage.retries()], output.loss.device)
    record: dict[str, Any] = {
        "step": progress.step,
        "samples_seen": progress.samples_seen,
        "epoch": progress.step / steps_per_epoch,
        "loss": progress.loss_sum / progress.loss_count if progress.loss_count else math.nan,
        "learning_rate": learning_rate,
        "gradient_norm": gradient_norm,
        **{name: mean / world_size() for name, mean in zip(logs, means, strict=True)},
        **clock.rates(),
        "bad_rows": progress.bad_row_count,
        "read_retries": int(num_retries),
        "restarts": progress.restarts,
        "seconds": clock.total(),
        "failed_writes": progress.failed_writes,
    }
    if output.embeddings is not None:
        parts = [part.detach() for part in output.embeddings]
        record |= health.embedding_health(*(parts if pieces is not None else map(gathered, parts)))
    progress.loss_sum, progress.loss_count = 0.0, 0
    return record | numbers


def _dim(output: StepOutput) -> int:
    return 0 if output.embeddings is None else output.embeddings[0].shape[1]


def _finite_only(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if not isinstance(value, float) or math.isfinite(value)}
