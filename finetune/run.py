"""Fine-tuning from settings to a model folder. `finetune` is the main flow and reads downwards."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from pretrain.data.manifest import Manifest, load_manifest
from torch import Tensor

from cluster import storage
from cluster.errors import UserError
from cluster.place import Place
from finetune.model import ImageClassifier, load_model, save_model
from finetune.settings import FinetuneSettings
from finetune.tasks.classification import Classifier, confusion, per_class, scores
from pretrain.data.augment import IMAGENET_MEAN, IMAGENET_STD, finish_views
from pretrain.data.labels import ClassNames, read_class_names_of
from pretrain.data.loader import Loader, bad_rows_in_words, batches_in_sequence
from pretrain.data.order import Order, default_num_streams
from pretrain.data.reader import Shards
from pretrain.data.views import CentralCrop, RandomCrops, ViewSpec, weak_views
from pretrain.encoders import Encoder, build_encoder, load_encoder, read_encoder_config
from pretrain.training import distributed
from pretrain.training.distributed import gathered_objects
from pretrain.training.launch import launch
from pretrain.training.loop import TrainingBatch, train
from pretrain.training.optimizers import build_optimizer, parameter_groups
from pretrain.training.run_folder import RunFolder, write_result
from pretrain.training.schedules import scaled_learning_rate, warmup_cosine

RANDOM = "random"


def run(settings: FinetuneSettings) -> int:
    """The command: checks everything that can be checked in seconds, then runs the workers. Returns the exit code."""
    settings = _with_absolute_urls(settings)
    order, manifest, validation = open_data(settings)
    order.streams_of_rank(0, max(1, settings.cluster.workers))
    read_class_names_of(manifest, validation, settings.label_column)
    open_encoder(settings)
    return launch("finetune", finetune, settings, cluster_settings=settings.cluster)


def finetune(place: Place, settings: FinetuneSettings) -> dict[str, Any]:
    """What each worker does; returns the contents of result.json."""
    torch.manual_seed(settings.seed)

    # -- data -----------------------------------------------------------------------------------------------------------
    order, manifest, validation = open_data(settings)
    classes = read_class_names_of(manifest, validation, settings.label_column)
    columns = [settings.label_column]
    shards = Shards(manifest, image_column=settings.data.image_column, columns=columns)
    validation_shards = Shards(validation, image_column=settings.data.image_column, columns=columns)
    num_threads = settings.data.decode_threads or max(1, torch.get_num_threads())

    # -- model ----------------------------------------------------------------------------------------------------------
    source = open_encoder(settings)
    views = weak_views(source.image_size, crop_scale=(settings.smallest_crop, 1.0))
    model: Classifier = Classifier(
        source.encoder,
        num_classes=len(classes.names),
        frozen=settings.mode == "linear",
        label_smoothing=settings.label_smoothing,
    ).to(place.device)
    distributed.synchronise_batch_norm(model, place.device)
    if settings.training.compile or (settings.training.compile is None and place.device.type == "cuda"):
        model.encoder.compile()

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
        parameter_groups(
            model,
            weight_decay=settings.optimizer.weight_decay,
            learning_rate_share=lambda name: _layer_share(name, source.encoder, settings.layer_decay),
        ),
        learning_rate=peak,
        momentum=settings.optimizer.momentum,
    )

    # -- train, judge every few epochs, keep the best -------------------------------------------------------------------
    model_url = storage.join(settings.out, "model")
    details = {
        "image_size": source.image_size,
        "crop_share": settings.crop_share,
        "mean": list(source.mean),
        "std": list(source.std),
        "encoder_url": settings.encoder,
    }

    def judge(classifier: ImageClassifier) -> tuple[Tensor, Tensor]:
        return validation_logits(
            classifier, validation_shards, settings.label_column, classes, place=place, decode_threads=num_threads
        )

    def evaluate(step: int) -> dict[str, float]:
        return scores(*judge(ImageClassifier(model, {"class_names": classes.names, **details})))

    def keep_best(step: int) -> None:
        if place.rank == 0:
            save_model(model_url, model, class_names=classes.names, step=step, **details)

    def batches_from(samples_seen: int) -> LabelledBatches:
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
        return LabelledBatches(loader, shards, views, source, settings, classes, place.device)

    run_folder = RunFolder(settings.out) if place.rank == 0 else None
    outcome = train(
        model,
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
        max_bad_share=settings.data.max_bad_share,
        log_every_steps=training.log_every_steps,
        checkpoint_every_steps=training.checkpoint_every_steps,
        checkpoint_every_seconds=training.checkpoint_every_seconds,
        keep_checkpoints=training.keep_checkpoints,
        evaluate=evaluate,
        evaluate_every_steps=round(settings.evaluate_every_epochs * order.steps_per_epoch),
        best_metric="accuracy",
        keep_best=keep_best,
    )
    progress = outcome.progress
    if outcome.status == "interrupted":
        if run_folder is not None:
            run_folder.close()
        return {"status": "interrupted", "step": progress.step}

    # -- what the run leaves: the best model, judged once more as it was saved -------------------------------------------
    gathered_objects(None)  # rank 0 has written the model
    logits, labels = judge(load_model(model_url).to(place.device))
    matrix = confusion(logits, labels)
    result = {
        "status": "finished",
        "task": settings.task,
        "mode": settings.mode,
        "encoder": settings.encoder,
        "model": model_url,
        "metrics": scores(logits, labels),
        "best_step": progress.best_step,
        "validation_images": len(labels),
        "per_class": per_class(matrix, classes.names),
        "class_names": classes.names,
        "confusion_matrix": matrix.tolist(),
        "steps": progress.step,
        "samples_seen": progress.samples_seen,
        "seconds": progress.seconds,
        "images_per_second": progress.samples_seen / max(progress.seconds, 1e-9),
        "restarts": progress.restarts,
        "skipped_steps": progress.skipped_steps,
        "bad_rows": progress.bad_row_count,
    }
    if run_folder is not None:
        run_folder.write_bad_rows([{"place": place, "reason": why} for place, why in sorted(progress.bad_rows.items())])
        run_folder.close()
        write_result(settings.out, result)
    return result


def open_data(settings: FinetuneSettings) -> tuple[Order, Manifest, Manifest]:
    """The order of the training rows, and both manifests. Raises UserError when they cannot be."""
    columns = [settings.data.image_column, settings.label_column]
    manifest, validation = (
        load_manifest(url, columns=columns, image_column=settings.data.image_column)
        for url in (settings.data.url, settings.validation_url)
    )
    batch_size = settings.training.batch_size_global
    order = Order(
        manifest.rows_of_group,
        batch_size_global=batch_size,
        num_streams=settings.data.num_streams or default_num_streams(batch_size),
        window_rows=settings.data.shuffle_window_rows,
        seed=settings.seed,
    )
    return order, manifest, validation


@dataclasses.dataclass(frozen=True)
class EncoderSource:
    """An encoder to start from, and how its images are to be made."""

    encoder: Encoder
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def open_encoder(settings: FinetuneSettings) -> EncoderSource:
    """The encoder that `settings.encoder` names. Raises UserError when there is none."""
    name, _, like = settings.encoder.partition(":")
    if settings.encoder == RANDOM or name == "timm":
        if name == "timm":
            encoder = build_encoder(settings.encoder, **{"pretrained": True, **settings.architecture.arguments})
        else:
            encoder = build_encoder(settings.architecture.name, **settings.architecture.arguments)
        return EncoderSource(encoder, settings.image_size or 224, IMAGENET_MEAN, IMAGENET_STD)
    url = like if name == RANDOM else settings.encoder
    config = read_encoder_config(url)
    encoder = build_encoder(config.name, **config.arguments) if name == RANDOM else load_encoder(url)
    return EncoderSource(encoder, settings.image_size or config.input_size or 224, config.mean, config.std)


class LabelledBatches:
    """A loader's batches as (images_BCHW, class ids [B]) on the training device."""

    def __init__(
        self,
        loader: Loader,
        shards: Shards,
        views: list[ViewSpec],
        source: EncoderSource,
        settings: FinetuneSettings,
        classes: ClassNames,
        device: torch.device,
    ) -> None:
        self._loader, self._shards, self._views, self._source = loader, shards, views, source
        self._seed, self._label_column, self._classes, self._device = (
            settings.seed,
            settings.label_column,
            classes,
            device,
        )

    def __next__(self) -> TrainingBatch:
        batch = next(self._loader)
        (images,) = finish_views(
            batch.arrays,
            self._views,
            seed=self._seed,
            epoch=batch.epoch,
            row_ids=batch.row_ids,
            device=self._device,
            mean=self._source.mean,
            std=self._source.std,
        )
        labels = torch.from_numpy(self._classes.ids(batch.columns[self._label_column])).to(self._device)
        return TrainingBatch((images, labels), bad_rows_in_words(batch, self._shards))

    def close(self) -> None:
        self._loader.close()


@torch.no_grad()
def validation_logits(
    classifier: ImageClassifier,
    shards: Shards,
    label_column: str,
    classes: ClassNames,
    *,
    place: Place,
    decode_threads: int,
    batch_size: int = 256,
) -> tuple[Tensor, Tensor]:
    """Logits float32 [N, num_classes] and class ids [N] of a whole data set, on every rank, whatever their number."""
    crop = CentralCrop(classifier.config["image_size"], share=classifier.config["crop_share"])
    logits = [np.zeros((0, len(classes.names)), np.float32)]
    labels = [np.zeros(0, np.int64)]
    for batch in batches_in_sequence(
        shards,
        crop,
        batch_size=batch_size,
        rank=place.rank,
        world_size=place.world_size,
        decode_threads=decode_threads,
    ):
        if len(batch.row_ids):
            logits.append(classifier.logits(batch.arrays[0]).float().cpu().numpy())
            labels.append(classes.ids(batch.columns[label_column]))
    parts = gathered_objects((np.concatenate(logits), np.concatenate(labels)))
    all_labels = np.concatenate([part for _, part in parts])
    if not len(all_labels):
        raise UserError("no image of the validation data can be decoded; `python -m pretrain.data check` says why")
    return torch.from_numpy(np.concatenate([part for part, _ in parts])), torch.from_numpy(all_labels)


def _layer_share(parameter_name: str, encoder: Encoder, decay: float) -> float:
    """Layer-wise learning-rate decay (ELECTRA, https://arxiv.org/abs/2003.10555; BEiT): 1 for the head, less below."""
    if not parameter_name.startswith("encoder."):
        return 1.0
    layer = encoder.layer_of(parameter_name.removeprefix("encoder."))
    return float(decay ** (encoder.num_layers - layer))


def _with_absolute_urls(settings: FinetuneSettings) -> FinetuneSettings:
    # workers may run in another folder
    name, _, like = settings.encoder.partition(":")
    encoder = settings.encoder
    if name == RANDOM and like:
        encoder = f"{RANDOM}:{storage.absolute(like)}"
    elif name not in (RANDOM, "timm"):
        encoder = storage.absolute(encoder)
    return dataclasses.replace(
        settings,
        out=storage.absolute(settings.out),
        encoder=encoder,
        validation_url=storage.absolute(settings.validation_url),
        data=dataclasses.replace(settings.data, url=storage.absolute(settings.data.url)),
    )
