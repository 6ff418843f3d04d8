"""What both main flows do with their settings: data, optimizer, schedule, the loop, the result's numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cluster.training.rank_context import RankContext
from pretrain.data.reading.loader import Batch, Loader
from pretrain.data.reading.manifest import Manifest
from pretrain.data.reading.order import Order, default_num_streams
from pretrain.data.reading.shards import Shards, Source
from pretrain.data.views.viewing import Viewer
from pretrain.encoders import Encoder
from pretrain.training.activation_checkpointing import checkpoint_blocks
from pretrain.training.anchoring import hold_on
from pretrain.training.batch_norm import synchronise_batch_norm
from pretrain.training.checkpoints import Progress
from pretrain.training.contract import Trainable
from pretrain.training.data_identity import Identity, identity_of, summary_of
from pretrain.training.exactness import exactness
from pretrain.training.feeding import TrainingBatches
from pretrain.training.loop import Outcome, train
from pretrain.training.optimizers import Rates, build_optimizer, parameter_groups
from pretrain.training.plan import Evaluating, Plan
from pretrain.training.run_folder import RunFolder
from pretrain.training.schedules import half_cosine, scaled_learning_rate, warmup_cosine
from pretrain.training.settings import DataSettings, OptimizerSettings, TrainingSettings

MAX_GRAPHS = 64


def order_of(manifest: Manifest, data: DataSettings, training: TrainingSettings, *, seed: int) -> Order:
    """The order of a data set's samples. Raises UserError when the batch fits neither data nor streams."""
    return Order(
        manifest.rows_of_group,
        batch_size_global=training.batch_size_global,
        num_streams=data.num_streams or default_num_streams(training.batch_size_global),
        # where few rows of a file are taken, a window spans as much of the files as it would with all of
        # them: what is read for it stays bounded, and row groups, which hold few of its rows then,
        # are shuffled anyway
        window_rows=max(1, round(data.shuffle_window_rows * min(1.0, manifest.fraction))),
        seed=seed,
        source_of_group=manifest.source_of_group,
        weights=data.weights or None,
    )


def describe_data(manifest: Manifest, order: Order) -> str:
    """What will be read, in a line."""
    files, rows = len(manifest.files), manifest.num_rows
    size = int(manifest.bytes_of_group.sum() * manifest.fraction)
    chosen = " chosen" if manifest.choice is not None else ""
    return (
        f"{rows:,}{chosen} images ({size / 2**20:,.1f} MiB) in {files:,} file{'s'[: files != 1]}; "
        f"{order.steps_per_epoch:,} steps of {order.batch_size_global:,} images an epoch"
    )


def num_decode_threads(data: DataSettings) -> int:
    """Threads that a worker decodes with: as many as it computes with, unless the settings say so."""
    return data.decode_threads or max(1, torch.get_num_threads())


@dataclass(frozen=True)
class Feed:
    """What a module is fed with.

    Attributes:
        columns: read beside the image.
        to_inputs: `to_inputs(views, batch)` makes what the module takes of the finished views and the rest
            of a batch.
        wrap_source: may add columns to what is read, see `pretrain.data.reading.stored_features`.
        also_read: data beside that of `manifest` that a run depends on, by what it is for.
    """

    order: Order
    manifest: Manifest
    viewer: Viewer
    to_inputs: Callable[[list[Tensor], Batch], Any]
    columns: Sequence[str] = ()
    wrap_source: Callable[[Source], Source] = lambda source: source
    also_read: Mapping[str, Manifest] = field(default_factory=dict)

    def batches(self, data: DataSettings, context: RankContext) -> Callable[[int], TrainingBatches]:
        """Gives a rank's batches from a number of samples seen (over all ranks) on."""
        shards = Shards(self.manifest, image_column=data.image_column, columns=self.columns)
        decode_threads = num_decode_threads(data)
        source, transform = self.wrap_source(shards), self.viewer.host_transform()
        kept = self.viewer.kept_images()

        def batches_from(samples_seen: int) -> TrainingBatches:
            loader = Loader(
                self.order,
                source,
                transform,
                rank=context.rank,
                world_size=context.world_size,
                samples_seen=samples_seen,
                decode_threads=decode_threads,
                read_threads=data.read_threads,
                prefetch_batches=data.prefetch_batches,
                prefetch_bytes=data.prefetch_mib * 2**20,
                kept=kept,
            )
            finish = self.viewer.finish
            return TrainingBatches(
                loader, shards, lambda batch: self.to_inputs(finish(batch), batch), context.device
            )

        return batches_from

    def identities(self) -> dict[str, Identity]:
        """What is learnt from, for checkpoints and results."""
        return identity_of({"train": self.manifest, **self.also_read})


class StageSettings(Protocol):
    """The settings that both stages share."""

    @property
    def out(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def data(self) -> DataSettings: ...
    @property
    def training(self) -> TrainingSettings: ...
    @property
    def optimizer(self) -> OptimizerSettings: ...


def train_by(
    settings: StageSettings,
    module: Trainable,
    feed: Feed,
    *,
    context: RankContext,
    run: RunFolder | None,
    learning_rate_factor: Callable[[str], float] = lambda name: 1.0,
    constant_rate: tuple[str, ...] = (),
    hold: tuple[Mapping[str, Tensor], float] | None = None,
    on_collapse: str = "warn",
    evaluating: Evaluating | None = None,
    evaluate_every_epochs: float = 0.0,
    compute_threads: int = 0,
    loop: Callable[..., Outcome] = train,
) -> Outcome:
    """Trains `module` on `feed` by the settings that both stages share.

    Args:
        learning_rate_factor: of a parameter, by its name.
        constant_rate: prefixes of parameters whose learning rate stays at its peak after the warm-up.
        hold: weights by the names of parameters, and how strongly they are held on to (`anchoring.hold_on`).
        evaluate_every_epochs: takes the place of `evaluating.every_steps`; 0: after the last step only.
        compute_threads: on the CPU; 0 for as many as the worker has.
        loop: `train`, or what takes the same in its place.
    """
    workers = f", {context.world_size} workers" if context.world_size > 1 else ""
    context.note(f"trains on {context.device_name}{workers}")
    _settle(module, settings.training, context)
    training, steps_per_epoch = settings.training, feed.order.steps_per_epoch
    num_steps = training.steps or max(1, round(training.epochs * steps_per_epoch))
    mover, rates_at = _optimizer(
        settings, module, num_steps, steps_per_epoch, learning_rate_factor, constant_rate, hold
    )
    if evaluating is not None and evaluate_every_epochs:
        # a small share of an epoch is no less often than each step
        every = max(1, round(evaluate_every_epochs * steps_per_epoch))
        evaluating = dataclasses.replace(evaluating, every_steps=every)
    plan = Plan(
        settings.out,
        training,
        num_steps,
        steps_per_epoch,
        rates_at,
        seed=settings.seed,
        on_collapse=on_collapse,
        max_bad_fraction=settings.data.max_bad_fraction,
        evaluating=evaluating,
        data=feed.identities() if context.rank == 0 else {},
        on_data_change=settings.data.on_change,
    )
    with exactness(training.reproducible, num_threads=compute_threads):
        return loop(
            module, mover, plan, context=context, run=run, batches_from=feed.batches(settings.data, context)
        )


def compile_blocks(module: nn.Module) -> None:
    """Compiles the blocks of every encoder in a module, momentum copies too."""
    # one graph for each shape of a block's images and weights, with gradient and without: more than the
    # default of 8. Left alone, the compiler takes the second size of crops for one of many, and its kernels
    # for any size are slower
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    for part in module.modules():
        if isinstance(part, Encoder):
            for block in part.blocks():
                block.compile(dynamic=False)


def _settle(module: Trainable, training: TrainingSettings, context: RankContext) -> None:
    # where every rank computes the loss of the whole batch, norms in heads see all of it
    num_norms = 0 if module.sees_global_batch else synchronise_batch_norm(module)
    if num_norms:
        context.note(f"{num_norms} batch norms use the statistics of all {context.world_size} workers")
    if context.device.type == "cuda":
        module.to(memory_format=torch.channels_last)
    if training.compile or (training.compile is None and context.device.type == "cuda"):
        compile_blocks(module)
    if training.activation_checkpointing:
        checkpoint_blocks(module)


def _optimizer(
    settings: StageSettings,
    module: Trainable,
    num_steps: int,
    steps_per_epoch: int,
    learning_rate_factor: Callable[[str], float],
    constant_rate: tuple[str, ...],
    hold: tuple[Mapping[str, Tensor], float] | None,
) -> tuple[Optimizer, Callable[[int], Rates]]:
    chosen = settings.optimizer
    num_warmup_steps = min(round(settings.training.warmup_epochs * steps_per_epoch), num_steps // 2)
    batch = settings.training.batch_size_global
    peak = scaled_learning_rate(chosen.learning_rate, scaling=chosen.scaling, batch_size_global=batch)
    first_decay, last_decay = chosen.weight_decay, chosen.final_weight_decay

    def rates_at(step: int) -> Rates:
        learning_rate, constant = (
            peak
            * warmup_cosine(
                step, num_steps=num_steps, num_warmup_steps=num_warmup_steps, final_fraction=final
            )
            for final in (chosen.final_fraction, 1.0)
        )
        decay = first_decay if last_decay is None else half_cosine(first_decay, last_decay, step / num_steps)
        return Rates(learning_rate, constant, decay)

    groups = parameter_groups(
        module,
        weight_decay=first_decay,
        learning_rate_factor=learning_rate_factor,
        constant_rate=constant_rate,
    )
    mover = build_optimizer(chosen.name, groups, learning_rate=peak, momentum=chosen.momentum)
    if hold is not None:
        hold_on(mover, module, hold[0], strength=hold[1], peak_rate=peak)
    return mover, rates_at


def summary(progress: Progress, context: RankContext) -> dict[str, Any]:
    """What result.json holds for every finished run."""
    return {
        "device": context.device_name,
        "workers": context.world_size,
        "steps": progress.step,
        "samples_seen": progress.samples_seen,
        "seconds": progress.seconds,
        "images_per_second": progress.samples_seen / max(progress.seconds, 1e-9),
        "restarts": progress.restarts,
        "restart_log": progress.restart_log,
        "failed_writes": progress.failed_writes,
        "skipped_steps": progress.skipped_steps,
        "bad_rows": progress.bad_row_count,
        "data": summary_of(progress.data),
        **({"parent": progress.parent} if progress.parent else {}),
    }
