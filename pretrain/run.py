"""Pretraining from settings to an encoder folder. `pretrain` is the main flow and reads downwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from cluster import storage
from cluster.errors import UserError
from cluster.secrets import masked
from cluster.training.rank_context import RankContext
from pretrain.data.reading.manifest import Manifest, load_manifest
from pretrain.data.reading.order import Order
from pretrain.data.reading.shards import Source
from pretrain.data.reading.stored_features import StoredFeatures, with_features
from pretrain.data.views.recipes import ViewSpec
from pretrain.data.views.viewing import Viewer
from pretrain.encoders import Encoder, save_encoder
from pretrain.encoders.sources import EncoderSource, absolute_encoder
from pretrain.evaluating import Evaluation, best_metric, label_probe
from pretrain.methods import Method, build_method, method_views
from pretrain.settings import PretrainSettings
from pretrain.starting import fresh_encoder, layer_factor, moved, parameters_of, resolved, start_of
from pretrain.training.checkpoints import with_room
from pretrain.training.launch import launch
from pretrain.training.loop import Outcome, train
from pretrain.training.probes import LabelProbe
from pretrain.training.recipe import Feed, describe_data, order_of, summary, train_by
from pretrain.training.run_folder import RunFolder


def run(
    settings: PretrainSettings, *, check_only: bool = False, report: Callable[[str], object] | None = None
) -> int:
    """The command: checks what can be checked in seconds, then runs the workers. Returns the exit code.

    `report(out)` is called when the run has ended, however it did.
    """
    settings, start_notes = resolved(_with_absolute_urls(settings))
    parts = Parts.of(settings)
    world_sizes = _world_sizes(settings, parts.order)
    for line in (describe_data(parts.manifest, parts.order), *start_notes):
        print(f"pretrain: {masked(line)}", flush=True)
    return launch(
        "pretrain",
        # workers of a cluster make their own parts, but none reads all footers again
        partial(pretrain, known=parts.known) if settings.cluster.workers else partial(pretrain, parts=parts),
        settings,
        cluster_settings=settings.cluster,
        world_sizes=world_sizes,
        data={"train": parts.manifest},
        check_only=check_only,
        report=report,
    )


@dataclass(frozen=True)
class Known:
    """What the command has read of the data before there are workers.

    These take it from there: each of many reading all footers and listings again
    would be millions of requests to a store.
    """

    manifest: Manifest
    stored: StoredFeatures | None
    probe: LabelProbe | None


@dataclass(frozen=True)
class Parts:
    """What a run is made of. The order of samples is known before a byte of image is read."""

    known: Known
    order: Order
    views: list[ViewSpec]
    source: EncoderSource | None
    method: Method

    @property
    def manifest(self) -> Manifest:
        """Of the data."""
        return self.known.manifest

    @classmethod
    def of(cls, settings: PretrainSettings, known: Known | None = None) -> Parts:
        """Raises UserError for what no run can be made of. `known`: what was read of the data already."""
        settings.data.use_stores()
        data = settings.data
        manifest = known.manifest if known else load_manifest(data.urls, image_column=data.image_column)
        order = order_of(manifest, data, settings.training, seed=settings.seed)
        order.streams_of_rank(0, max(1, settings.cluster.workers))
        views = views_of(settings)
        torch.manual_seed(settings.seed)
        source = start_of(settings)
        method = method_of(settings, source)
        best_metric(settings)
        if known is None:
            known = Known(manifest, stored_features(method, manifest), label_probe(settings))
        return cls(known, order, views, source, method)


def pretrain(
    context: RankContext,
    settings: PretrainSettings,
    *,
    parts: Parts | None = None,
    known: Known | None = None,
    loop: Callable[..., Outcome] = train,
) -> dict[str, Any]:
    """What each worker does; returns the contents of result.json.

    `parts` are those of the settings, where made already, and `known` what the command read of the data.
    """
    settings.data.use_stores()
    parts = parts or Parts.of(settings, known)
    manifest, source = parts.manifest, parts.source
    viewer = _viewer(settings, parts.views, context.device)
    start = {} if source is None else parameters_of(source.encoder)
    method = parts.method.to(context.device)
    method.normalisation = viewer.mean, viewer.std
    evaluation = Evaluation(settings, manifest, context, parts.known.probe, lambda: _first_weights(settings))
    run_folder = RunFolder.of(settings, context)
    hold = ({f"encoder.{name}": was for name, was in start.items()}, settings.method.keep)

    # -- train ----------------------------------------------------------------------------------------------
    outcome = train_by(
        settings,
        method,
        Feed(parts.order, manifest, viewer, method.to_inputs, wrap_source=partial(with_stored, parts)),
        context=context,
        run=run_folder,
        learning_rate_factor=lambda name: layer_factor(name, method.encoder, settings.encoder.layer_decay),
        constant_rate=method.constant_rate,
        hold=hold if settings.method.keep else None,
        on_collapse=settings.method.on_collapse,
        evaluating=evaluation.evaluating(method),
        evaluate_every_epochs=settings.knn.every_epochs,
        # products of matrices depend on the number of threads, and workers on one machine share its CPUs
        compute_threads=int(method.sees_global_batch and settings.cluster.cpus_per_worker is None),
        loop=loop,
    )
    progress = outcome.progress
    if outcome.status != "finished":
        if run_folder is not None:
            run_folder.close(finished=False)
        return {"status": outcome.status, "step": progress.step}

    # -- what the run leaves --------------------------------------------------------------------------------
    url, metrics = storage.join(settings.out, "encoder"), progress.metrics
    result = {"status": "finished", "encoder": url, "metrics": metrics, **summary(progress, context)}
    if method.learns_from is not None:
        result["teacher"] = dict(method.learns_from)
    if source is not None:
        result |= {"started_from": source.described(), "moved": moved(method.exported, start)}
    if run_folder is not None:
        with_room(settings.out, partial(_save, url, settings, parts, method, viewer, progress.samples_seen))
        run_folder.finish(result, progress.bad_rows)
    return result


def _viewer(settings: PretrainSettings, specs: list[ViewSpec], device: torch.device) -> Viewer:
    views = settings.views
    return Viewer(
        specs,
        seed=settings.seed,
        device=device,
        channels=views.channels,
        mean=views.mean,
        std=views.std,
        keep=settings.data.keep,
        keep_bytes=settings.data.keep_bytes,
    )


def _save(
    url: str, settings: PretrainSettings, parts: Parts, method: Method, viewer: Viewer, samples_seen: int
) -> None:
    save_encoder(
        method.exported,
        url,
        mean=viewer.mean,
        std=viewer.std,
        input_size=settings.views.size,
        method=settings.method.name,
        samples_seen=samples_seen,
        dataset_fingerprint=parts.manifest.fingerprint,
        teacher=method.learns_from,
        started_from=None if parts.source is None else parts.source.described(),
    )


def views_of(settings: PretrainSettings) -> list[ViewSpec]:
    """The views of the run. Raises UserError for settings that they cannot have."""
    views = settings.views
    for name in ("mean", "std"):
        given = getattr(views, name)
        if given is not None and len(given) != views.channels:
            raise UserError(f"views.{name} has {len(given)} numbers, but views.channels={views.channels}")
    if views.std is not None and min(views.std) <= 0:
        raise UserError(
            f"views.std={views.std} is not possible: images are divided by it, so all must be above 0"
        )
    return method_views(settings.method.name, views.recipe, views.size, views.arguments)


def method_of(settings: PretrainSettings, start: EncoderSource | None = None) -> Method:
    """The method as the run begins with it; `start` is the settings' own, when it is open already.

    Raises UserError for settings that it cannot have.
    """
    method = settings.method
    start = start or start_of(settings)
    return build_method(
        method.name,
        fresh_encoder(settings) if start is None else start.encoder,
        method.arguments,
        images_per_pass=method.images_per_pass,
        exact_pieces=method.exact_pieces,
    )


def stored_features(method: Method, manifest: Manifest) -> StoredFeatures | None:
    """The stored features that a method asks for. Raises UserError when they are not of this data."""
    return None if method.stored_features is None else StoredFeatures(method.stored_features, manifest)


def with_stored(parts: Parts, source: Source) -> Source:
    """Adds the stored features that the method asks for to what is read."""
    stored = parts.known.stored
    return source if stored is None else with_features(source, stored, parts.method.stored_columns)


def _world_sizes(settings: PretrainSettings, order: Order) -> list[int]:
    """The possible numbers of workers. Raises UserError where pieces do not fit the batch or the workers."""
    pieces, workers = settings.method.exact_pieces, max(1, settings.cluster.workers)
    batch = order.batch_size_global
    if not pieces:
        return order.world_sizes
    possible = [size for size in order.world_sizes if pieces % size == 0]
    if batch % pieces:
        raise UserError(f"method.exact_pieces={pieces} does not divide training.batch_size_global={batch}")
    if workers not in possible:
        raise UserError(
            f"cluster.workers={workers} does not divide method.exact_pieces={pieces}; possible numbers of "
            f"workers: {', '.join(map(str, possible))}"
        )
    return possible


def _first_weights(settings: PretrainSettings) -> Encoder:
    """The encoder as the run began with it; random numbers drawn here are not missed elsewhere."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        start = start_of(settings)
        return (fresh_encoder(settings) if start is None else start.encoder).eval()


def _with_absolute_urls(settings: PretrainSettings) -> PretrainSettings:
    # workers may run in another folder
    def absolute(url: str | None) -> str | None:
        return None if url is None else storage.absolute(url)

    arguments = dict(settings.method.arguments)
    for name, absolute_name in (("features", storage.absolute), ("teacher", absolute_encoder)):
        if isinstance(arguments.get(name), str):
            arguments[name] = absolute_name(arguments[name])
    return dataclasses.replace(
        settings,
        out=storage.absolute(settings.out),
        method=dataclasses.replace(settings.method, arguments=arguments),
        data=settings.data.with_absolute_urls(),
        training=settings.training.with_absolute_parent(),
        knn=dataclasses.replace(
            settings.knn,
            train_url=absolute(settings.knn.train_url),
            test_url=absolute(settings.knn.test_url),
        ),
    )
