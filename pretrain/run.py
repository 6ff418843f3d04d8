"""Pretraining from settings to an encoder folder. `pretrain` is the main flow and reads downwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cluster import storage
from cluster.errors import UserError
from cluster.place import Place
from pretrain.data.augment import IMAGENET_MEAN, IMAGENET_STD, finish_views
from pretrain.data.loader import Batch
from pretrain.data.manifest import load_manifest
from pretrain.data.views import RandomViews
from pretrain.encoders import Encoder, build_encoder, save_encoder
from pretrain.methods import build_method, method_views
from pretrain.settings import PretrainSettings
from pretrain.training.features import KnnProbe
from pretrain.training.launch import launch
from pretrain.training.loop import Outcome, train
from pretrain.training.recipe import describe_data, num_decode_threads, order_of, summary, train_by
from pretrain.training.run_folder import RunFolder, write_result


def run(settings: PretrainSettings, *, check_only: bool = False) -> int:
    """The command: checks everything that can be checked in seconds, then runs the workers. Returns the exit code."""
    settings = _with_absolute_urls(settings)
    settings.data.use_stores()
    columns = [settings.data.image_column]
    manifest = load_manifest(settings.data.urls, columns=columns, image_column=settings.data.image_column)
    order = order_of(manifest, settings.data, settings.training, seed=settings.seed)
    order.streams_of_rank(0, max(1, settings.cluster.workers))
    build_method(settings.method.name, _encoder(settings), settings.method.arguments)
    method_views(settings.method.name, settings.views.size, settings.views.arguments)
    _knn_probe(settings)
    print(f"pretrain: {describe_data(manifest, order)}", flush=True)
    return launch("pretrain", pretrain, settings, cluster_settings=settings.cluster, check_only=check_only)


def pretrain(place: Place, settings: PretrainSettings, *, loop: Callable[..., Outcome] = train) -> dict[str, Any]:
    """What each worker does; returns the contents of result.json."""
    torch.manual_seed(settings.seed)
    settings.data.use_stores()

    # -- data: the order of samples is known before a byte of image is read ---------------------------------------------
    columns = [settings.data.image_column]
    manifest = load_manifest(settings.data.urls, columns=columns, image_column=settings.data.image_column)
    order = order_of(manifest, settings.data, settings.training, seed=settings.seed)
    views = method_views(settings.method.name, settings.views.size, settings.views.arguments)

    def to_views(batch: Batch) -> list[Tensor]:
        return finish_views(batch.arrays, batch.parameters, device=place.device)

    # -- encoder and method ---------------------------------------------------------------------------------------------
    encoder = _encoder(settings)
    method = build_method(settings.method.name, encoder, settings.method.arguments).to(place.device)
    probe = _knn_probe(settings)

    # -- train ----------------------------------------------------------------------------------------------------------
    run_folder = RunFolder(settings.out) if place.rank == 0 else None
    outcome = train_by(
        method,
        encoder=encoder,
        place=place,
        out=settings.out,
        run=run_folder,
        order=order,
        manifest=manifest,
        transform=RandomViews(
            views,
            seed=settings.seed,
            colours_on_host=place.device.type == "cpu",
            pinned=place.device.type == "cuda",
        ),
        to_inputs=to_views,
        data=settings.data,
        training=settings.training,
        optimizer=settings.optimizer,
        seed=settings.seed,
        on_collapse=settings.method.on_collapse,
        evaluate=None if probe is None else lambda step: probe(encoder, place),
        evaluate_every_epochs=settings.knn.every_epochs,
        loop=loop,
    )
    progress = outcome.progress
    if outcome.status != "finished":
        if run_folder is not None:
            run_folder.close()
        return {"status": outcome.status, "step": progress.step}

    # -- what the run leaves --------------------------------------------------------------------------------------------
    encoder_url = storage.join(settings.out, "encoder")
    result = {"status": "finished", "encoder": encoder_url, "metrics": progress.metrics, **summary(progress)}
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
        run_folder.write_bad_rows(progress.bad_rows)
        run_folder.close()
        write_result(settings.out, result)
    return result


def _encoder(settings: PretrainSettings) -> Encoder:
    arguments = dict(settings.encoder.arguments)
    if settings.encoder.name.startswith("convattn_") and settings.encoder.name != "convattn_classic":
        # as many pixels in the last map for small images as for large ones
        size = settings.views.size
        arguments.setdefault("stem_stride", 1 if size <= 48 else 2 if size <= 128 else 4)
    return build_encoder(settings.encoder.name, **arguments)


def _knn_probe(settings: PretrainSettings) -> KnnProbe | None:
    knn = settings.knn
    if knn.train_url is None and knn.test_url is None:
        return None
    if knn.train_url is None or knn.test_url is None:
        raise UserError("kNN needs both knn.train_url and knn.test_url; give the missing one or set both to null")
    return KnnProbe(
        knn.train_url,
        knn.test_url,
        image_column=settings.data.image_column,
        label_column=knn.label_column,
        size=settings.views.size,
        crop_share=knn.crop_share,
        neighbours=knn.neighbours,
        decode_threads=num_decode_threads(settings.data),
    )


def _with_absolute_urls(settings: PretrainSettings) -> PretrainSettings:
    # workers may run in another folder
    def absolute(url: str | None) -> str | None:
        return None if url is None else storage.absolute(url)

    return dataclasses.replace(
        settings,
        out=storage.absolute(settings.out),
        data=settings.data.with_absolute_urls(),
        knn=dataclasses.replace(
            settings.knn, train_url=absolute(settings.knn.train_url), test_url=absolute(settings.knn.test_url)
        ),
    )
