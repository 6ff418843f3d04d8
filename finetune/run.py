"""Fine-tuning from settings to a model folder. `finetune` is the main flow and reads downwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster import storage
from cluster.errors import UserError
from cluster.place import Place
from finetune.model import ImageClassifier, load_model, save_model
from finetune.settings import FinetuneSettings
from finetune.tasks.classification import Classifier, confusion, per_class, scores
from pretrain.data.augment import IMAGENET_MEAN, IMAGENET_STD
from pretrain.data.labels import ClassNames, read_class_names_of
from pretrain.data.loader import Batch, batches_in_sequence
from pretrain.data.manifest import Manifest, load_manifest
from pretrain.data.order import Order
from pretrain.data.recipes import weak_views
from pretrain.data.shards import Shards
from pretrain.data.viewing import Viewer
from pretrain.encoders import Encoder, build_encoder, load_encoder, read_encoder_config
from pretrain.training.distributed import gathered_objects
from pretrain.training.launch import launch
from pretrain.training.loop import Outcome, train
from pretrain.training.recipe import describe_data, num_decode_threads, order_of, summary, train_by
from pretrain.training.run_folder import RunFolder, write_result

RANDOM = "random"


def run(settings: FinetuneSettings, *, check_only: bool = False) -> int:
    """The command: checks everything that can be checked in seconds, then runs the workers. Returns the exit code."""
    settings = _with_absolute_urls(settings)
    settings.data.use_stores()
    order, manifest, validation = open_data(settings)
    order.streams_of_rank(0, max(1, settings.cluster.workers))
    read_class_names_of(manifest, validation, settings.label_column)
    open_encoder(settings)
    print(f"finetune: {describe_data(manifest, order)}", flush=True)
    return launch("finetune", finetune, settings, cluster_settings=settings.cluster, check_only=check_only)


def finetune(place: Place, settings: FinetuneSettings, *, loop: Callable[..., Outcome] = train) -> dict[str, Any]:
    """What each worker does; returns the contents of result.json."""
    torch.manual_seed(settings.seed)
    settings.data.use_stores()

    # -- data -----------------------------------------------------------------------------------------------------------
    order, manifest, validation = open_data(settings)
    classes = read_class_names_of(manifest, validation, settings.label_column)
    columns = [settings.label_column]
    validation_shards = Shards(validation, image_column=settings.data.image_column, columns=columns)

    # -- model ----------------------------------------------------------------------------------------------------------
    source = open_encoder(settings)
    views = weak_views(source.image_size, crop_scale=(settings.smallest_crop, 1.0))
    model = Classifier(
        source.encoder,
        num_classes=len(classes.names),
        frozen=settings.mode == "linear",
        label_smoothing=settings.label_smoothing,
    ).to(place.device)
    details = {
        "image_size": source.image_size,
        "crop_share": settings.crop_share,
        "mean": list(source.mean),
        "std": list(source.std),
        "encoder_url": settings.encoder,
    }

    viewer = Viewer(
        views,
        seed=settings.seed,
        device=place.device,
        channels=source.encoder.in_channels,
        mean=source.mean,
        std=source.std,
        keep=settings.data.keep,
        keep_bytes=settings.data.keep_bytes,
    )

    def to_images_and_labels(images: list[Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        labels = classes.ids(batch.columns[settings.label_column])
        return images[0], torch.from_numpy(labels).to(place.device, non_blocking=True)

    # -- train, judge every few epochs, keep the best -------------------------------------------------------------------
    model_url = storage.join(settings.out, "model")

    def judge(classifier: ImageClassifier) -> tuple[Tensor, Tensor]:
        return validation_logits(
            classifier,
            validation_shards,
            settings.label_column,
            classes,
            place=place,
            decode_threads=num_decode_threads(settings.data),
        )

    def evaluate(step: int, last: bool) -> dict[str, float]:
        return scores(*judge(ImageClassifier(model, {"class_names": classes.names, **details})))

    def keep_best(step: int) -> None:
        if place.rank == 0:
            save_model(model_url, model, class_names=classes.names, step=step, **details)

    run_folder = RunFolder(settings.out) if place.rank == 0 else None
    outcome = train_by(
        model,
        place=place,
        out=settings.out,
        run=run_folder,
        order=order,
        manifest=manifest,
        columns=columns,
        viewer=viewer,
        to_inputs=to_images_and_labels,
        data=settings.data,
        training=settings.training,
        optimizer=settings.optimizer,
        seed=settings.seed,
        learning_rate_share=lambda name: _layer_share(name, source.encoder, settings.layer_decay),
        evaluate=evaluate,
        evaluate_every_epochs=settings.evaluate_every_epochs,
        best_metric="accuracy",
        keep_best=keep_best,
        loop=loop,
    )
    progress = outcome.progress
    if outcome.status != "finished":
        if run_folder is not None:
            run_folder.close()
        return {"status": outcome.status, "step": progress.step}

    # -- what the run leaves: the best model, judged once more as it was saved -------------------------------------------
    gathered_objects(None)  # every rank waits until rank 0 has written the model
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
        **summary(progress),
    }
    if run_folder is not None:
        run_folder.write_bad_rows(progress.bad_rows)
        run_folder.close()
        write_result(settings.out, result)
    return result


def open_data(settings: FinetuneSettings) -> tuple[Order, Manifest, Manifest]:
    """The order of the training rows, and both manifests. Raises UserError when they cannot be."""
    columns = [settings.data.image_column, settings.label_column]
    manifest, validation = (
        load_manifest(url, columns=columns, image_column=settings.data.image_column)
        for url in (settings.data.urls, settings.validation_url)
    )
    return order_of(manifest, settings.data, settings.training, seed=settings.seed), manifest, validation


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
    crop = classifier.crop
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
        data=settings.data.with_absolute_urls(),
    )
