"""Pretraining from settings to an encoder folder. `pretrain` is the main flow and reads downwards."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from cluster import storage
from cluster.errors import UserError
from cluster.place import Place
from pretrain.data.augment import IMAGENET_MEAN, IMAGENET_STD, finish_views
from pretrain.data.loader import Loader, bad_rows_in_words
from pretrain.data.manifest import Manifest, load_manifest
from pretrain.data.order import Order, default_num_streams
from pretrain.data.reader import Shards
from pretrain.data.views import RandomCrops, ViewSpec
from pretrain.encoders import Encoder, build_encoder, save_encoder
from pretrain.methods import build_method, method_views
from pretrain.settings import KnnSettings, PretrainSettings
from pretrain.training import distributed
from pretrain.training.features import KnnProbe
from pretrain.training.launch import launch
from pretrain.training.loop import TrainingBatch, train
from pretrain.training.optimizers import build_optimizer, parameter_groups
from pretrain.training.run_folder import RunFolder, write_result
from pretrain.training.schedules import scaled_learning_rate, warmup_cosine
from pretrain.training.settings import DataSettings


def run(settings: PretrainSettings) -> int:
    """The command: checks everything that can be checked in seconds, then runs the workers. Returns the exit code."""
    settings = dataclasses.replace(settings, out=storage.absolute(settings.out), data=_absolute(settings.data))
    order, _ = open_data(settings)
    order.streams_of_rank(0, max(1, settings.cluster.workers))
    build_method(settings.method.name, _encoder(settings), settings.method.arguments)
    method_views(settings.method.name, settings.views.size, settings.views.arguments)
    _knn_probe(settings.knn, settings, num_threads=1)
    return launch("pretrain", pretrain, settings, cluster_settings=settings.cluster)


def pretrain(place: Place, settings: PretrainSettings) -> dict[str, Any]:
    """What each worker does; returns the contents of result.json."""
    torch.manual_seed(settings.seed)

    # -- data: the order of samples is known before a byte of image is read ---------------------------------------------
    order, manifest = open_data(settings)
    shards = Shards(manifest, image_column=settings.data.image_column)
    views = method_views(settings.method.name, settings.views.size, settings.views.arguments)
    num_threads = settings.data.decode_threads or max(1, torch.get_num_threads())

    def batches_from(samples_seen: int) -> ViewBatches:
        loader = Loader(
            order,
            shards,
            RandomCrops(views, seed=settings.seed),
            rank=place.rank,
            world_size=place.world_size,
            samples_seen=samples_seen,
            decode_threads=num_threads,
            read_threads=settings.data.read_threads,
            prefetch_batches=settings.data.prefetch_batches,
        )
        return ViewBatches(loader, shards, views, seed=settings.seed, device=place.device)

    # -- encoder and method ---------------------------------------------------------------------------------------------
    encoder = _encoder(settings)
    method = build_method(settings.method.name, encoder, settings.method.arguments).to(place.device)
    num_norms = distributed.synchronise_batch_norm(method, place.device)
    if num_norms and place.rank == 0:
        place.report(
            {"kind": "note", "text": f"{num_norms} batch norms use the statistics of all {place.world_size} workers"}
        )
    if place.device.type == "cuda":
        method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.training.compile or (settings.training.compile is None and place.device.type == "cuda"):
        encoder.compile()

    # -- optimizer and schedule -----------------------------------------------------------------------------------------
    training = settings.training
    num_steps = training.steps or max(1, round(training.epochs * order.steps_per_epoch))
    num_warmup_steps = min(round(training.warmup_epochs * order.steps_per_epoch), num_steps // 2)
    peak = scaled_learning_rate(
        settings.optimizer.learning_rate,
        scaling=settings.optimizer.scaling,
        batch_size_global=training.batch_size_global,
    )
    optimizer = build_optimizer(
        settings.optimizer.name,
        parameter_groups(method, weight_decay=settings.optimizer.weight_decay),
        learning_rate=peak,
        momentum=settings.optimizer.momentum,
    )

    # -- train ----------------------------------------------------------------------------------------------------------
    probe = _knn_probe(settings.knn, settings, num_threads=num_threads)
    run_folder = RunFolder(settings.out) if place.rank == 0 else None
    outcome = train(
        method,
        optimizer,
        place=place,
        run=run_folder,
        run_url=settings.out,
        batches_from=batches_from,
        num_steps=num_steps,
        batch_size_global=training.batch_size_global,
        steps_per_epoch=order.steps_per_epoch,
        learning_rate_at=lambda step: (
            peak
            * warmup_cosine(
                step,
                num_steps=num_steps,
                num_warmup_steps=num_warmup_steps,
                final_share=settings.optimizer.final_share,
            )
        ),
        seed=settings.seed,
        precision=training.precision,
        clip_gradient=training.clip_gradient,
        on_nonfinite=training.on_nonfinite,
        on_collapse=settings.method.on_collapse,
        max_bad_share=settings.data.max_bad_share,
        log_every_steps=training.log_every_steps,
        checkpoint_every_steps=training.checkpoint_every_steps,
        checkpoint_every_seconds=training.checkpoint_every_seconds,
        keep_checkpoints=training.keep_checkpoints,
        evaluate=None if probe is None else lambda step: probe(encoder, place),
        evaluate_every_steps=round(settings.knn.every_epochs * order.steps_per_epoch),
    )
    progress = outcome.progress
    if outcome.status == "interrupted":
        if run_folder is not None:
            run_folder.close()
        return {"status": "interrupted", "step": progress.step}

    # -- what the run leaves --------------------------------------------------------------------------------------------
    encoder_url = storage.join(settings.out, "encoder")
    result = {
        "status": "finished",
        "encoder": encoder_url,
        "metrics": progress.metrics,
        "steps": progress.step,
        "samples_seen": progress.samples_seen,
        "seconds": progress.seconds,
        "images_per_second": progress.samples_seen / max(progress.seconds, 1e-9),
        "restarts": progress.restarts,
        "skipped_steps": progress.skipped_steps,
        "bad_rows": progress.bad_row_count,
    }
    if run_folder is not None:
        save_encoder(
            encoder,
            encoder_url,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            input_size=settings.views.size,
            method=settings.method.name,
            samples_seen=progress.samples_seen,
            dataset_fingerprint=manifest.fingerprint,
        )
        run_folder.write_bad_rows([{"place": place, "reason": why} for place, why in sorted(progress.bad_rows.items())])
        run_folder.close()
        write_result(settings.out, result)
    return result


def open_data(settings: PretrainSettings) -> tuple[Order, Manifest]:
    """The manifest of the data and the order of its samples. Raises UserError when they cannot be."""
    manifest = load_manifest(
        settings.data.url, columns=[settings.data.image_column], image_column=settings.data.image_column
    )
    batch_size = settings.training.batch_size_global
    order = Order(
        manifest.rows_of_group,
        batch_size_global=batch_size,
        num_streams=settings.data.num_streams or default_num_streams(batch_size),
        window_rows=settings.data.shuffle_window_rows,
        seed=settings.seed,
    )
    return order, manifest


class ViewBatches:
    """A loader's batches as the method's views on the training device."""

    def __init__(
        self, loader: Loader, shards: Shards, views: list[ViewSpec], *, seed: int, device: torch.device
    ) -> None:
        self._loader, self._shards, self._views = loader, shards, views
        self._seed, self._device = seed, device

    def __next__(self) -> TrainingBatch:
        batch = next(self._loader)
        views = finish_views(
            batch.arrays,
            self._views,
            seed=self._seed,
            epoch=batch.epoch,
            row_ids=batch.row_ids,
            device=self._device,
        )
        if self._device.type == "cuda":
            views = [view.contiguous(memory_format=torch.channels_last) for view in views]
        return TrainingBatch(views, bad_rows_in_words(batch, self._shards))

    def close(self) -> None:
        self._loader.close()


def _encoder(settings: PretrainSettings) -> Encoder:
    arguments = dict(settings.encoder.arguments)
    if settings.encoder.name.startswith("convattn_") and settings.encoder.name != "convattn_classic":
        # as many pixels in the last map for small images as for large ones
        size = settings.views.size
        arguments.setdefault("stem_stride", 1 if size <= 48 else 2 if size <= 128 else 4)
    return build_encoder(settings.encoder.name, **arguments)


def _knn_probe(knn: KnnSettings, settings: PretrainSettings, *, num_threads: int) -> KnnProbe | None:
    if knn.train_url is None and knn.test_url is None:
        return None
    if knn.train_url is None or knn.test_url is None:
        raise UserError("kNN needs both knn.train_url and knn.test_url; give the missing one or set both to null")
    return KnnProbe(
        storage.absolute(knn.train_url),
        storage.absolute(knn.test_url),
        image_column=settings.data.image_column,
        label_column=knn.label_column,
        size=settings.views.size,
        crop_share=knn.crop_share,
        neighbours=knn.neighbours,
        decode_threads=num_threads,
    )


def _absolute(data: DataSettings) -> DataSettings:
    return dataclasses.replace(data, url=storage.absolute(data.url))
