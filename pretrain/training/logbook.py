"""What a run measures, reports and writes between its steps: counts, evaluations, log lines, checkpoints."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch.optim import Optimizer

from cluster import storage
from cluster.durations import duration
from cluster.errors import RunStopped, UserError
from cluster.process import give_back_memory
from cluster.training.rank_context import RankContext
from pretrain.training import health
from pretrain.training.agreement import Agreement, StepNumbers
from pretrain.training.checkpoints import CheckpointWriter, Progress
from pretrain.training.clock import Clock
from pretrain.training.contract import GradientExchange, Trainable
from pretrain.training.distributed import gathered_objects, summed, world_size
from pretrain.training.plan import Plan
from pretrain.training.rules import check_finite, evaluation_out_of_memory, too_many_bad
from pretrain.training.run_folder import RunFolder
from pretrain.training.stepping import Gradients

FAILED_CHECKPOINT_SECONDS = 30.0  # after one that could not be written the next is not long in coming


class Logbook:
    """Keeps a run's `progress`; `run` and `writer` are rank 0's.
    What agrees over ranks is called on every rank alike.
    """

    def __init__(
        self,
        module: Trainable,
        optimizer: Optimizer,
        progress: Progress,
        plan: Plan,
        context: RankContext,
        run: RunFolder | None,
        writer: CheckpointWriter | None,
    ) -> None:
        self._module, self._optimizer, self._plan, self._context = module, optimizer, plan, context
        self._run, self._writer = run, writer
        self.progress, self.clock = progress, Clock(progress.seconds)
        batch = plan.training.batch_size_global
        self._watch = health.HealthWatch(num_steps=plan.num_steps, batch_size_global=batch)
        self._warned: set[str] = set()
        self._skipped_in_a_row = 0
        self._checkpointed_at = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether no step is left: all are taken, or evaluations ran out of patience."""
        return self.progress.step >= self._plan.num_steps or self._out_of_patience

    @property
    def _out_of_patience(self) -> bool:
        evaluating = self._plan.evaluating
        return evaluating is not None and 0 < evaluating.patience <= self.progress.evaluations_since_best

    def is_due(self, step: int) -> bool:
        """Whether something is evaluated, logged or written after this step,
        so that its numbers are wanted at once.
        """
        training, evaluating = self._plan.training, self._plan.evaluating
        intervals = [training.log_every_steps, training.checkpoint_every_steps]
        if evaluating is not None and evaluating.every_steps:
            intervals.append(evaluating.every_steps)
        return step >= self._plan.num_steps or any(step % interval == 0 for interval in intervals)

    def settle(self, agreement: Agreement) -> StepNumbers:
        """Takes in what all ranks know of a step. Raises RunStopped by the
        rules for unsound steps and bad rows.
        """
        numbers, progress, plan = agreement.read(), self.progress, self._plan
        if numbers.unsound:
            self._skipped_in_a_row += 1
            progress.skipped_steps += 1
            check_finite(plan.training.on_nonfinite, agreement, self._skipped_in_a_row)
            self._context.warn(f"step {agreement.step} skipped: loss or gradient is not finite")
        else:
            self._skipped_in_a_row = 0
            progress.loss_sum += numbers.loss
            progress.loss_count += 1
        progress.bad_row_count += numbers.num_bad_rows
        seen, rows_per_epoch = agreement.samples_seen, plan.training.batch_size_global * plan.steps_per_epoch
        if (unusable := too_many_bad(progress, seen, plan.max_bad_fraction, rows_per_epoch)) is not None:
            self._gather_bad_rows()
            raise RunStopped(unusable)
        if (
            "bad rows" not in self._warned
            and (unusable := too_many_bad(progress, seen, plan.max_bad_fraction, 0)) is not None
        ):
            self._warned.add("bad rows")
            rule = "the run stops when they are more than that fraction of all rows"
            self._context.warn(f"step {agreement.step + 1}: {unusable}; {rule}")
        return numbers

    def count_step(self) -> None:
        """A step was taken."""
        progress, batch = self.progress, self._plan.training.batch_size_global
        progress.step += 1
        progress.samples_seen += batch
        self.clock.count(batch)
        self._context.beat(progress.step)
        if self._run is not None and (seconds := self._run.restarts.step_taken()) is not None:
            self._context.note(f"recovered within {duration(seconds)}")

    def tell_troubles(self) -> None:
        """Says what could not be written since the last call."""
        while self._run is not None and self._run.troubles:
            self.progress.failed_writes += 1
            self._context.warn(self._run.troubles.popleft())

    def evaluate_when_due(self) -> dict[str, float]:
        """The numbers of an evaluation after this step; empty where none is due."""
        evaluating, progress, num_steps = self._plan.evaluating, self.progress, self._plan.num_steps
        if evaluating is None:
            return {}
        every = evaluating.every_steps
        if progress.step != num_steps and not (every and progress.step % every == 0):
            return {}
        with self.clock.paused():
            self._module.eval()
            try:
                numbers = evaluating.function(progress.step, progress.step == num_steps)
            except torch.OutOfMemoryError as error:
                raise evaluation_out_of_memory(progress.step, self._context, error) from error
            self._module.train()
            self._keep_best(numbers)
            give_back_memory()
        for name, number in numbers.items():
            if math.isfinite(number):
                progress.metrics[name] = number
            else:  # neither JSON nor a report can hold it, and the former one is out of date
                progress.metrics.pop(name, None)
                self._context.warn(f"step {progress.step}: {name} is {number}")
        if self._out_of_patience and progress.step < num_steps:
            many = evaluating.patience
            self._context.note(
                f"stops at step {progress.step} of {num_steps}: {many} evaluations without a better one"
            )
        return numbers

    def _keep_best(self, numbers: dict[str, float]) -> None:
        evaluating, progress = self._plan.evaluating, self.progress
        assert evaluating is not None
        score = numbers.get(evaluating.best_metric) if evaluating.best_metric else None
        if score is None:
            return
        former, sign = progress.best_score, -1.0 if evaluating.best_is_lowest else 1.0
        progress.evaluations_since_best += 1
        better = math.isfinite(score) and (former is None or sign * score > sign * former)
        if better:
            progress.best_score, progress.evaluations_since_best = score, 0
        if better or former is None:  # a run without any sound score keeps its newest model
            progress.best_step = progress.step
            if evaluating.keep_best is not None:
                evaluating.keep_best(progress.step)

    def log_when_due(
        self, gradients: Gradients, exchange: GradientExchange, numbers: dict[str, float]
    ) -> None:
        """A line of metrics.jsonl, and what it says about the run's health. Raises RunStopped on collapse
        where the plan says so.

        `numbers` are those of an evaluation, which are logged whenever there are any.
        """
        progress = self.progress
        if progress.step % self._plan.training.log_every_steps and not self.over and not numbers:
            return
        state = self._module.health()
        record = self._record(gradients, exchange) | state | numbers
        output = gradients.output
        dim = 0 if output.embeddings is None else output.embeddings[0].shape[1]
        findings = self._watch.look(progress.step, record, dim=dim, chance_loss=output.chance_loss)
        if findings:
            record["findings"] = {finding.kind: finding.text for finding in findings}
        if self._run is not None:
            self._run.log(record)
        self._context.report({"kind": "progress", "num_steps": self._plan.num_steps, **_finite_only(record)})
        for finding in findings:
            if self._plan.on_collapse == "stop" and finding.kind in health.COLLAPSES:
                raise RunStopped(f"step {progress.step}: {finding.text}")
            if finding.kind not in self._warned:
                self._context.warn(f"step {progress.step}: {finding.text}")
            self._warned.add(finding.kind)

    def _record(self, gradients: Gradients, exchange: GradientExchange) -> dict[str, Any]:
        # all ranks come here, because health looks at the embeddings of all;
        # rank 0 computes it, and all get its numbers
        progress, output = self.progress, gradients.output
        logs = sorted(output.logs)
        healthy: dict[str, float] = {}
        if output.embeddings is not None:
            first, second = (exchange.whole(health.watched_part(part)) for part in output.embeddings)
            healthy = (
                health.embedding_health(first, second)
                if self._context.rank == 0
                else dict.fromkeys(health.EMBEDDING_NUMBERS, 0.0)
            )
        num_retries, *summed_up = summed(
            [storage.retries(), *(float(output.logs[name]) for name in logs), *healthy.values()],
            output.loss.device,
        )
        means = summed_up[: len(logs)]
        healthy = dict(zip(healthy, summed_up[len(logs) :], strict=True))
        record: dict[str, Any] = {
            "step": progress.step,
            "samples_seen": progress.samples_seen,
            "epoch": progress.step / self._plan.steps_per_epoch,
            "loss": progress.loss_sum / progress.loss_count if progress.loss_count else math.nan,
            "learning_rate": gradients.learning_rate,
            "gradient_norm": float(gradients.norm),
            **{name: mean / world_size() for name, mean in zip(logs, means, strict=True)},
            **self.clock.rates(),
            "bad_rows": progress.bad_row_count,
            "read_retries": int(num_retries),
            "restarts": progress.restarts,
            "seconds": self.clock.total(),
            "failed_writes": progress.failed_writes,
        }
        record |= healthy
        progress.loss_sum, progress.loss_count = 0.0, 0
        return record

    def wants_checkpoint(self) -> bool:
        """Whether this rank wants one beside those after a number of steps:
        rank 0, asked or by the clock.
        """
        failed = self._writer is not None and self._writer.failed
        seconds = self._plan.training.checkpoint_every_seconds
        if failed:
            seconds = min(seconds, FAILED_CHECKPOINT_SECONDS)
        asked = self._context.checkpoint_requested()
        return self._context.rank == 0 and (asked or time.monotonic() - self._checkpointed_at > seconds)

    def write_checkpoint_when_due(self, *, asked: bool, stops: bool) -> None:
        """A checkpoint, after the last step, at a stop, when a rank has asked, and every so many steps."""
        ends = self.over or stops
        if not (ends or asked or self.progress.step % self._plan.training.checkpoint_every_steps == 0):
            return
        self.progress.seconds = self.clock.total()
        self._gather_bad_rows()
        if self._run is not None and self._writer is not None:
            self._writer.write(
                self._module, self._optimizer, self.progress, first=self._run.sync, needed=ends
            )
        self._checkpointed_at = time.monotonic()
        give_back_memory()

    def _gather_bad_rows(self) -> None:
        for rows in gathered_objects(self.progress.bad_rows):
            self.progress.bad_rows.update(rows)

    def close(self) -> None:
        """However the run ended: a checkpoint under way is worth its seconds,
        and what was logged is stored.
        """
        if self._writer is not None:
            self._writer.join()
        self.tell_troubles()
        if self._run is not None:
            if self.progress.bad_rows:
                self._run.write_bad_rows(self.progress.bad_rows)
            self._run.sync()

    def finish(self) -> None:
        """Raises what went wrong with the last checkpoint, unless the disk was full after the last step:
        the model may fit.
        """
        if self._writer is not None:
            try:
                self._writer.wait()
            except UserError as error:
                if not (self.over and storage.is_full(error)):
                    raise
        self.progress.seconds = self.clock.total()


def _finite_only(record: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in record.items() if not isinstance(value, float) or math.isfinite(value)
    }
