"""Pretraining from settings to an encoder folder. `pretrain` is the main flow and reads downwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from cluster import storage
from cluster.errors import UserError
from cluster.place import Place
from cluster.settings import to_dict
from pretrain.data.manifest import load_manifest
from pretrain.data.order import Order
from pretrain.data.recipes import ViewSpec
from pretrain.data.viewing import Viewer
from pretrain.encoders import Encoder, build_encoder, save_encoder
from pretrain.methods import Method, build_method, method_views
from pretrain.settings import PretrainSettings
from pretrain.training.health import LEAST_RANK, fallen_rank
from pretrain.training.launch import launch
from pretrain.training.loop import Outcome, train
from pretrain.training.probes import UNTRAINED, LabelProbe, rankme
from pretrain.training.recipe import describe_data, num_decode_threads, order_of, summary, train_by
from pretrain.training.run_folder import RunFolder, write_result


def run(settings: PretrainSettings, *, check_only: bool = False, report: Callable[[str], object] | None = None) -> int:
    """The command: checks everything that can be checked in seconds, then runs the workers. Returns the exit code.

    `report(out)` is called when the run has ended, however it did.
    """
    settings = _with_absolute_urls(settings)
    settings.data.use_stores()
    columns = [settings.data.image_column]
    manifest = load_manifest(settings.data.urls, columns=columns, image_column=settings.data.image_column)
    order = order_of(manifest, settings.data, settings.training, seed=settings.seed)
    order.streams_of_rank(0, max(1, settings.cluster.workers))
    world_sizes = _world_sizes(settings, order)
    method_of(settings)
    views_of(settings)
    _label_probe(settings)
    print(f"pretrain: {describe_data(manifest, order)}", flush=True)
    return launch(
        "pretrain",
        pretrain,
        settings,
        cluster_settings=settings.cluster,
        world_sizes=world_sizes,
        data={"train": manifest},
        check_only=check_only,
        report=report,
    )


def pretrain(place: Place, settings: PretrainSettings, *, loop: Callable[..., Outcome] = train) -> dict[str, Any]:
    """What each worker does; returns the contents of result.json."""
    torch.manual_seed(settings.seed)
    settings.data.use_stores()

    # -- data: the order of samples is known before a byte of image is read ---------------------------------------------
    columns = [settings.data.image_column]
    manifest = load_manifest(settings.data.urls, columns=columns, image_column=settings.data.image_column)
    order = order_of(manifest, settings.data, settings.training, seed=settings.seed)
    views = views_of(settings)

    viewer = Viewer(
        views,
        seed=settings.seed,
        device=place.device,
        channels=settings.views.channels,
        mean=settings.views.mean,
        std=settings.views.std,
        keep=settings.data.keep,
        keep_bytes=settings.data.keep_bytes,
    )

    # -- encoder and method ---------------------------------------------------------------------------------------------
    method = method_of(settings).to(place.device)
    encoder = method.exported
    probe = _label_probe(settings)

    def dimensions_of(looked_at: Encoder) -> float:
        column, num = settings.data.image_column, settings.rankme_images
        return rankme(looked_at, manifest, place, num_images=num, image_column=column, **_how_to_look(settings))

    def evaluate(step: int, last: bool) -> dict[str, float]:
        scores = {} if probe is None else probe(encoder, place, linear=last and settings.knn.linear)
        if last and probe is not None:
            # what the network knows before it learns: without it a score says little
            before = probe(_first_weights(settings).to(place.device), place, linear=settings.knn.linear)
            scores |= {f"{name}_{UNTRAINED}": score for name, score in before.items()}
        if last and settings.rankme_images:
            scores["rankme"] = dimensions_of(encoder)
            if scores["rankme"] < LEAST_RANK:
                finding = fallen_rank(scores["rankme"], dimensions_of(_first_weights(settings).to(place.device)))
                if finding is not None and place.rank == 0:
                    place.report({"kind": "warning", "text": f"step {step}: {finding.text}"})
        return scores

    # -- train ----------------------------------------------------------------------------------------------------------
    run_folder = None
    if place.rank == 0:
        run_folder = RunFolder(settings.out, tracking=settings.tracking, config=to_dict(settings))
    outcome = train_by(
        method,
        place=place,
        out=settings.out,
        run=run_folder,
        order=order,
        manifest=manifest,
        viewer=viewer,
        to_inputs=lambda images, batch: images,
        data=settings.data,
        training=settings.training,
        optimizer=settings.optimizer,
        seed=settings.seed,
        constant_rate=method.constant_rate,
        on_collapse=settings.method.on_collapse,
        evaluate=evaluate,
        evaluate_every_epochs=0.0 if probe is None else settings.knn.every_epochs,
        # products of matrices depend on the number of threads, and workers on one machine share its CPUs
        compute_threads=int(method.pieces is not None and settings.cluster.cpus_per_worker is None),
        loop=loop,
    )
    progress = outcome.progress
    if outcome.status != "finished":
        if run_folder is not None:
            run_folder.close(finished=False)
        return {"status": outcome.status, "step": progress.step}

    # -- what the run leaves --------------------------------------------------------------------------------------------
    encoder_url = storage.join(settings.out, "encoder")
    result = {"status": "finished", "encoder": encoder_url, "metrics": progress.metrics, **summary(progress)}
    if run_folder is not None:
        save_encoder(
            encoder,
            encoder_url,
            mean=viewer.mean,
            std=viewer.std,
            input_size=settings.views.size,
            method=settings.method.name,
            samples_seen=progress.samples_seen,
            dataset_fingerprint=manifest.fingerprint,
        )
        run_folder.write_bad_rows(progress.bad_rows)
        run_folder.close()
        write_result(settings.out, result)
    return result


def views_of(settings: PretrainSettings) -> list[ViewSpec]:
    """The views of the run. Raises UserError for settings that they cannot have."""
    views = settings.views
    for name in ("mean", "std"):
        given = getattr(views, name)
        if given is not None and len(given) != views.channels:
            raise UserError(f"views.{name} has {len(given)} numbers, but views.channels={views.channels}")
    if views.std is not None and min(views.std) <= 0:
        raise UserError(f"views.std={views.std} is not possible: images are divided by it, so all must be above 0")
    return method_views(settings.method.name, views.recipe, views.size, views.arguments)


def method_of(settings: PretrainSettings) -> Method:
    """The method with fresh weights. Raises UserError for settings that it cannot have."""
    method = settings.method
    return build_method(
        method.name,
        _encoder(settings),
        method.arguments,
        images_per_pass=method.images_per_pass,
        exact_pieces=method.exact_pieces,
    )


def _world_sizes(settings: PretrainSettings, order: Order) -> list[int]:
    """The numbers of workers that the run can have. Raises UserError where pieces do not fit the batch or the workers."""
    pieces, batch, workers = settings.method.exact_pieces, order.batch_size_global, max(1, settings.cluster.workers)
    if not pieces:
        return order.world_sizes
    possible = [size for size in order.world_sizes if pieces % size == 0]
    if batch % pieces:
        raise UserError(f"method.exact_pieces={pieces} does not divide training.batch_size_global={batch}")
    if workers not in possible:
        raise UserError(
            f"cluster.workers={workers} does not divide method.exact_pieces={pieces}; possible numbers of workers: "
            f"{', '.join(map(str, possible))}"
        )
    return possible


def _encoder(settings: PretrainSettings) -> Encoder:
    arguments = dict(settings.encoder.arguments)
    if settings.views.channels != 3:
        arguments.setdefault("in_channels", settings.views.channels)
    if settings.encoder.name.startswith("convattn_") and settings.encoder.name != "convattn_classic":
        # as many pixels in the last map for small images as for large ones
        size = settings.views.size
        arguments.setdefault("stem_stride", 1 if size <= 48 else 2 if size <= 128 else 4)
    return build_encoder(settings.encoder.name, **arguments)


def _first_weights(settings: PretrainSettings) -> Encoder:
    """The encoder as the run began with it; random numbers drawn here are not missed elsewhere."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return _encoder(settings).eval()


def _label_probe(settings: PretrainSettings) -> LabelProbe | None:
    knn = settings.knn
    if knn.train_url is None and knn.test_url is None:
        return None
    if knn.train_url is None or knn.test_url is None:
        raise UserError("kNN needs both knn.train_url and knn.test_url; give the missing one or set both to null")
    return LabelProbe(
        knn.train_url,
        knn.test_url,
        image_column=settings.data.image_column,
        label_column=knn.label_column,
        neighbours=knn.neighbours,
        **_how_to_look(settings),
    )


def _how_to_look(settings: PretrainSettings) -> dict[str, Any]:
    return {
        "size": settings.views.size,
        "crop_share": settings.knn.crop_share,
        "decode_threads": num_decode_threads(settings.data),
        "mean": settings.views.mean,
        "std": settings.views.std,
    }


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
