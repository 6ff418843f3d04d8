"""Fine-tuning from settings to a model folder. `finetune` is the main flow and reads downwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cluster import storage
from cluster.errors import UserError, choose
from cluster.secrets import masked_url
from cluster.training.rank_context import RankContext
from finetune.adapting import LORA, adapt, check_adaptable
from finetune.comparing import compare, others
from finetune.model import load_model, save_model
from finetune.overlap import overlap
from finetune.settings import FinetuneSettings
from finetune.starting import check_images
from finetune.tasks import TASKS
from finetune.tasks.base import Evaluation, Predictor, Task, TaskModel, common_config
from pretrain.data.reading.manifest import Manifest, load_manifest
from pretrain.data.reading.order import Order
from pretrain.data.reading.shards import Shards
from pretrain.encoders import Encoder
from pretrain.encoders.sources import RANDOM, EncoderSource, absolute_encoder, open_encoder
from pretrain.training.checkpoints import Progress, with_room
from pretrain.training.distributed import gathered_objects
from pretrain.training.launch import launch, write_report
from pretrain.training.loop import Outcome, train
from pretrain.training.plan import Evaluating
from pretrain.training.recipe import Feed, describe_data, num_decode_threads, order_of, summary, train_by
from pretrain.training.run_folder import REPORT, RunFolder
from pretrain.training.stepping import autocast_for

DEFAULT_IMAGE_SIZE = 224


def run(
    settings: FinetuneSettings, *, check_only: bool = False, report: Callable[[str], object] | None = None
) -> int:
    """The command: the run itself, then the ones to compare it with. Returns the exit code.

    `report(out)` is called when the run has ended, however it did,
    and again when there is something to compare it with.
    """
    settings = _with_absolute_urls(settings)
    _check_compared(settings)
    code = run_one(settings, check_only=check_only, report=report)
    if code or check_only:
        return code
    code = compare(settings, run_one)
    if report is not None and not storage.exists(storage.join(settings.out, REPORT)):
        write_report(report, settings.out)  # anew where the comparison is another one
    return code


def _check_compared(settings: FinetuneSettings) -> None:
    """Raises UserError, before the main run, for an encoder to compare with that cannot be opened."""
    settings.data.use_stores()
    for other in others(settings):
        try:
            source = _open_encoder(other)
            if other.mode == LORA:
                check_adaptable(other.encoder)
        except UserError as error:
            _open_encoder(settings)  # random weights are of its kind: what is wrong with it is said of it
            raise UserError(f"compare names what cannot be compared with: {error}") from error
        del source


def run_one(
    settings: FinetuneSettings, *, check_only: bool = False, report: Callable[[str], object] | None = None
) -> int:
    """Checks everything that can be checked in seconds, then runs the workers. Returns the exit code."""
    parts, source = Parts.of(settings)
    task, manifest = parts.task, parts.manifest
    order = _order(settings, manifest)
    if settings.best_metric is not None and task.metric_names:
        choose("best_metric", settings.best_metric, task.metric_names)
    check_images(manifest, settings.data.image_column, source.encoder.in_channels)
    if settings.mode == LORA:
        check_adaptable(settings.encoder)
    same = overlap(manifest, parts.validation, image_column=settings.data.image_column)
    for line in (describe_data(manifest, order), *task.notes, *[str(same)] * bool(same.num)):
        print(f"finetune: {line}", flush=True)
    return launch(
        "finetune",
        # what is made here is used here; workers of a cluster open the encoder for themselves, but none
        # reads all footers and labels again: on many of them that would be millions of requests to a store
        partial(finetune, parts=parts, source=None if settings.cluster.workers else source),
        settings,
        cluster_settings=settings.cluster,
        world_sizes=order.world_sizes,
        data={"train": manifest, "validation": parts.validation},
        check_only=check_only,
        report=report,
    )


@dataclass(frozen=True)
class Parts:
    """What a run is made of besides its encoder: the training rows, and what their labels say.

    `task_config` is what the task makes of labels and encoder; `random_state` is torch's after the encoder
    was made, which heads draw from, here and on workers alike.
    """

    manifest: Manifest
    validation: Manifest
    task: Task
    task_config: dict[str, Any]
    random_state: Tensor

    @classmethod
    def of(cls, settings: FinetuneSettings) -> tuple[Parts, EncoderSource]:
        """And the encoder. Raises UserError for what a run cannot be made of."""
        settings.data.use_stores()
        order, manifest, validation = open_data(settings)
        order.streams_of_rank(0, max(1, settings.cluster.workers))
        task: Task = TASKS[settings.task](settings, manifest, validation)
        source = _first_encoder(settings)
        config = task.config_for(source.encoder, _image_size(settings, source))
        return cls(manifest, validation, task, config, torch.get_rng_state()), source


def finetune(
    context: RankContext,
    settings: FinetuneSettings,
    *,
    parts: Parts | None = None,
    source: EncoderSource | None = None,
    loop: Callable[..., Outcome] = train,
) -> dict[str, Any]:
    """What each worker does; returns result.json's contents. `parts`, `source`: those made already."""
    settings.data.use_stores()
    if parts is None:
        parts, source = Parts.of(settings)
    source = source or _first_encoder(settings)
    manifest, validation, task = parts.manifest, parts.validation, parts.task
    columns = sorted(set(task.columns.values()))

    # -- model ----------------------------------------------------------------------------------------------
    torch.set_rng_state(parts.random_state)
    size = _image_size(settings, source)
    config = common_config(settings, source, size, task.columns) | parts.task_config
    if settings.mode == LORA:
        config["lora"] = adapt(source.encoder, settings.lora)
    model = task.training_model(source.encoder, config).to(context.device)
    viewer = task.viewer(settings, source, size, context)

    # -- train, evaluate every few epochs, keep the best ----------------------------------------------------
    shards = Shards(validation, image_column=settings.data.image_column, columns=columns)
    best = Best(settings, task, model, config, shards, context)
    run_folder = RunFolder.of(settings, context)
    feed = Feed(
        _order(settings, manifest),
        manifest,
        viewer,
        lambda images, batch: task.to_inputs(images, batch, context.device),
        columns=columns,
        also_read={"validation": validation},
    )
    outcome = train_by(
        settings,
        model,
        feed,
        context=context,
        run=run_folder,
        learning_rate_factor=lambda name: _layer_factor(name, source.encoder, settings),
        evaluating=best.evaluating(),
        evaluate_every_epochs=settings.evaluate_every_epochs,
        loop=loop,
    )
    progress = outcome.progress
    if outcome.status != "finished":
        if run_folder is not None:
            run_folder.close(finished=False)
        return {"status": outcome.status, "step": progress.step}

    # -- what the run leaves: the best model, evaluated once more as it was saved ---------------------------
    gathered_objects(None)  # every rank waits until rank 0 has written the model
    evaluation = best.scores(load_model(best.url).to(context.device))
    result = _result(settings, best, evaluation, progress, task.findings) | summary(progress, context)
    if run_folder is not None:
        same = overlap(manifest, validation, image_column=settings.data.image_column)
        if same.num:
            result["validation_rows_in_training"] = same.as_json()
        run_folder.finish(result, progress.bad_rows)
    return result


def _result(
    settings: FinetuneSettings,
    best: Best,
    evaluation: Evaluation,
    progress: Progress,
    findings: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "status": "finished",
        "task": settings.task,
        "mode": settings.mode,
        "encoder": masked_url(settings.encoder),
        "model": best.url,
        "metrics": evaluation.metrics,
        "best_metric": best.metric,
        "best_step": progress.best_step,
        **findings,
        **evaluation.details,
    }


class Best:
    """Evaluates the model of a run while it learns, and keeps the best state of it in OUT/model."""

    def __init__(self, settings: FinetuneSettings, task: Task, model: TaskModel, config: dict[str, Any],
                 validation: Shards, context: RankContext) -> None:  # fmt: skip
        self.url = storage.join(settings.out, "model")
        self.metric = settings.best_metric or task.best_metric
        self._settings, self._task, self._model, self._config = settings, task, model, config
        self._validation, self._context = validation, context
        self._calibrated: dict[str, Any] = {}

    def evaluating(self) -> Evaluating:
        """For the loop."""
        return Evaluating(
            self.evaluate,
            best_metric=self.metric,
            best_is_lowest=lower_is_better(self.metric),
            keep_best=self.keep,
            patience=self._settings.patience,
        )

    def scores(self, predictor: Predictor) -> Evaluation:
        """Of a predictor on the validation data."""
        threads = num_decode_threads(self._settings.data)
        with autocast_for(self._settings.training.precision, self._context.device)():
            return predictor.evaluate(self._validation, self._context, decode_threads=threads)

    def evaluate(self, step: int, last: bool) -> dict[str, float]:
        """The metrics of the model as it is."""
        evaluation = self.scores(self._task.predictor(self._model, self._config))
        choose("best_metric", self.metric, evaluation.metrics)
        self._calibrated.update(evaluation.calibrated)
        return evaluation.metrics

    def keep(self, step: int) -> None:
        """Saves the model as it is."""
        if self._context.rank == 0:
            config = {**self._config, **self._calibrated, "step": step}
            with_room(self._settings.out, partial(save_model, self.url, self._model, config))


def open_data(settings: FinetuneSettings) -> tuple[Order, Manifest, Manifest]:
    """The order of the training rows, and both manifests. Raises UserError when they cannot be."""
    columns = [settings.data.image_column, *TASKS[settings.task].columns_of(settings).values()]
    manifest, validation = (
        usable(load_manifest(url, columns=columns, image_column=settings.data.image_column), settings)
        for url in (settings.data.urls, settings.validation_url)
    )
    chosen = TASKS[settings.task].choose_rows(settings, manifest)
    if chosen is not None:
        manifest = manifest.chosen(chosen)
    return _order(settings, manifest), manifest, validation


def _order(settings: FinetuneSettings, manifest: Manifest) -> Order:
    return order_of(manifest, settings.data, settings.training, seed=settings.seed)


def usable(manifest: Manifest, settings: FinetuneSettings) -> Manifest:
    """The rows that the task can use. Raises UserError where there are none."""
    task = TASKS[settings.task]
    columns = task.columns_of(settings)
    return manifest.with_rows_of_use(task.usable_rows(columns, manifest), f"a {' and a '.join(columns)}")


def _first_encoder(settings: FinetuneSettings) -> EncoderSource:
    """The encoder as the run begins with it, on every worker alike."""
    torch.manual_seed(settings.seed)
    return _open_encoder(settings)


def _open_encoder(settings: FinetuneSettings) -> EncoderSource:
    architecture = settings.architecture
    return open_encoder(
        settings.encoder, architecture.name, architecture.arguments, image_size=settings.image_size
    )


def _image_size(settings: FinetuneSettings, source: EncoderSource) -> int:
    """Side of the images in pixels."""
    return settings.image_size or source.image_size or DEFAULT_IMAGE_SIZE


def lower_is_better(metric: str) -> bool:
    """Whether a metric is better when lower, as losses and errors are, and nothing else is."""
    return metric.endswith(("loss", "error"))


def _layer_factor(parameter_name: str, encoder: Encoder, settings: FinetuneSettings) -> float:
    """Layer-wise learning-rate decay (ELECTRA, https://arxiv.org/abs/2003.10555; BEiT):
    1 for the head, less below.

    Adapters start from nothing on each layer, and fresh layers know nothing that could be spared:
    these learn at one rate.
    """
    is_fresh = settings.encoder.partition(":")[0] == RANDOM
    if settings.mode != "full" or is_fresh or not parameter_name.startswith("encoder."):
        return 1.0
    layer = encoder.layer_of(parameter_name.removeprefix("encoder."))
    decay = TASKS[settings.task].layer_decay if settings.layer_decay is None else settings.layer_decay
    return float(decay ** (encoder.num_layers - layer))


def _with_absolute_urls(settings: FinetuneSettings) -> FinetuneSettings:
    # workers may run in another folder
    return dataclasses.replace(
        settings,
        out=storage.absolute(settings.out),
        encoder=absolute_encoder(settings.encoder),
        compare=[absolute_encoder(name) for name in settings.compare],
        validation_url=storage.absolute(settings.validation_url),
        data=settings.data.with_absolute_urls(),
        training=settings.training.with_absolute_parent(),
    )
