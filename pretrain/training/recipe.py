"""What both main flows do with the settings they share: data, optimizer, schedule and the loop, and the result's numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cluster.place import Place
from pretrain.data.loader import Batch, Loader
from pretrain.data.manifest import Manifest
from pretrain.data.order import Order, default_num_streams
from pretrain.data.shards import Shards, Source
from pretrain.data.viewing import Viewer
from pretrain.encoders import Encoder
from pretrain.training import distributed
from pretrain.training.anchoring import hold_on
from pretrain.training.checkpoints import Progress
from pretrain.training.data_identity import identity_of, summary_of
from pretrain.training.exactness import exactness
from pretrain.training.feeding import TrainingBatches
from pretrain.training.loop import Outcome, train
from pretrain.training.optimizers import Rates, build_optimizer, parameter_groups
from pretrain.training.run_folder import RunFolder
from pretrain.training.schedules import half_cosine, scaled_learning_rate, warmup_cosine
from pretrain.training.settings import DataSettings, OptimizerSettings, TrainingSettings


def order_of(manifest: Manifest, data: DataSettings, training: TrainingSettings, *, seed: int) -> Order:
    """The order of a data set's samples. Raises UserError when the batch does not fit the data or the streams."""
    return Order(
        manifest.rows_of_group,
        batch_size_global=training.batch_size_global,
        num_streams=data.num_streams or default_num_streams(training.batch_size_global),
        # where few rows of a file are taken, a window spans as much of the files as it would with all of them: what is read
        # for it stays bounded, and row groups, which hold few of its rows then, are shuffled anyway
        window_rows=max(1, round(data.shuffle_window_rows * min(1.0, manifest.share))),
        seed=seed,
        source_of_group=manifest.source_of_group,
        weights=data.weights or None,
    )


def describe_data(manifest: Manifest, order: Order) -> str:
    """What will be read, in a line."""
    files, rows = len(manifest.files), manifest.num_rows
    size = int(manifest.bytes_of_group.sum() * manifest.share)
    chosen = " chosen" if manifest.choice is not None else ""
    return (
        f"{rows:,}{chosen} images ({size / 2**20:,.1f} MiB) in {files:,} file{'s'[: files != 1]}; "
        f"{order.steps_per_epoch:,} steps of {order.batch_size_global:,} images an epoch"
    )


def num_decode_threads(data: DataSettings) -> int:
    """Threads that a worker decodes with: as many as it computes with, unless the settings say so."""
    return data.decode_threads or max(1, torch.get_num_threads())


def train_by(
    module: nn.Module,
    *,
    place: Place,
    out: str,
    run: RunFolder | None,
    order: Order,
    manifest: Manifest,
    columns: Sequence[str] = (),
    viewer: Viewer,
    to_inputs: Callable[[list[Tensor], Batch], Any],
    data: DataSettings,
    training: TrainingSettings,
    optimizer: OptimizerSettings,
    seed: int,
    learning_rate_share: Callable[[str], float] = lambda name: 1.0,
    constant_rate: tuple[str, ...] = (),
    evaluate: Callable[[int, bool], dict[str, float]] | None = None,
    evaluate_every_epochs: float = 0.0,
    hold: tuple[Mapping[str, Tensor], float] | None = None,
    compute_threads: int = 0,
    also_read: Mapping[str, Manifest] | None = None,
    loop: Callable[..., Outcome] = train,
    wrap_source: Callable[[Source], Source] = lambda source: source,
    **more: Any,
) -> Outcome:
    """Trains `module` by the settings that both stages share; `more` goes to the `loop` as it is.

    `hold` are weights by the names of parameters, and how strongly they are held on to (`anchoring.hold_on`). `wrap_source`
    may add columns to what is read, see `pretrain.data.stored_features`. On the CPU it computes with `compute_threads`, 0 for
    as many as the worker has. `also_read` holds data beside that of `manifest` that a run depends on, by what it is for.

    `to_inputs(views, batch)` makes what the module takes of the finished views and the rest of a batch.
    """
    # where every rank computes the loss of the whole batch, norms in heads see all of it
    replicated = getattr(module, "pieces", None) is not None
    num_norms = 0 if replicated else distributed.synchronise_batch_norm(module, place.device)
    if num_norms:
        note = f"{num_norms} batch norms use the statistics of all {place.world_size} workers"
        place.report({"kind": "note", "text": note})
    if place.device.type == "cuda":
        module.to(memory_format=torch.channels_last)
    if training.compile or (training.compile is None and place.device.type == "cuda"):
        for part in module.modules():
            if isinstance(part, Encoder):  # momentum copies too
                part.compile()

    num_steps = training.steps or max(1, round(training.epochs * order.steps_per_epoch))
    num_warmup_steps = min(round(training.warmup_epochs * order.steps_per_epoch), num_steps // 2)
    peak = scaled_learning_rate(
        optimizer.learning_rate, scaling=optimizer.scaling, batch_size_global=training.batch_size_global
    )
    groups = parameter_groups(
        module,
        weight_decay=optimizer.weight_decay,
        learning_rate_share=learning_rate_share,
        constant_rate=constant_rate,
    )
    shards = Shards(manifest, image_column=data.image_column, columns=columns)
    decode_threads = num_decode_threads(data)
    source, transform = viewer.source(shards, decode_threads=decode_threads)
    wrapped = wrap_source(source)
    kept = viewer.kept_images()

    def batches_from(samples_seen: int) -> TrainingBatches:
        loader = Loader(
            order,
            wrapped,
            transform,
            rank=place.rank,
            world_size=place.world_size,
            samples_seen=samples_seen,
            decode_threads=decode_threads,
            read_threads=data.read_threads,
            prefetch_batches=data.prefetch_batches,
            prefetch_bytes=data.prefetch_mib * 2**20,
            kept=kept,
        )
        return TrainingBatches(loader, shards, lambda batch: to_inputs(viewer.finish(batch), batch), place.device)

    first_decay, last_decay = optimizer.weight_decay, optimizer.final_weight_decay

    def rates_at(step: int) -> Rates:
        learning_rate, constant = (
            peak * warmup_cosine(step, num_steps=num_steps, num_warmup_steps=num_warmup_steps, final_share=final)
            for final in (optimizer.final_share, 1.0)
        )
        decay = first_decay if last_decay is None else half_cosine(first_decay, last_decay, step / num_steps)
        return Rates(learning_rate, constant, decay)

    mover = build_optimizer(optimizer.name, groups, learning_rate=peak, momentum=optimizer.momentum)
    if hold is not None:
        hold_on(mover, module, hold[0], strength=hold[1], peak_rate=peak)
    with exactness(training.reproducible, num_threads=compute_threads):
        return loop(
            module,
            mover,
            place=place,
            run=run,
            run_url=out,
            batches_from=batches_from,
            num_steps=num_steps,
            batch_size_global=training.batch_size_global,
            steps_per_epoch=order.steps_per_epoch,
            rates_at=rates_at,
            seed=seed,
            precision=training.precision,
            clip_gradient=training.clip_gradient,
            on_nonfinite=training.on_nonfinite,
            max_bad_share=data.max_bad_share,
            data=identity_of({"train": manifest, **(also_read or {})}) if place.rank == 0 else None,
            on_data_change=data.on_change,
            log_every_steps=training.log_every_steps,
            checkpoint_every_steps=training.checkpoint_every_steps,
            checkpoint_every_seconds=training.checkpoint_every_seconds,
            keep_checkpoints=training.keep_checkpoints,
            evaluate=evaluate,
            evaluate_every_steps=round(evaluate_every_epochs * order.steps_per_epoch),
            **more,
        )


def summary(progress: Progress) -> dict[str, Any]:
    """What result.json says of every run that finished."""
    return {
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
    }
