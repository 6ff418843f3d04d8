"""What a task is: a module in this package that gives a `Task`, its `TaskModel`, and its `Predictor`.

- `Task` reads from settings and data what the labels say, and makes the module's inputs of batches. It lives
  while training.
- `TaskModel` is the network: `forward(inputs) -> StepOutput`.
- `Predictor` is a finished model with all it needs to predict for images and evaluate whole data sets; it is
  made of a model folder alone.

`config` is what ties them together: a JSON object with the keys of `common_config` and what the task adds
(class names, keywords, the arguments of its head). `Task.new_model(encoder, config)` makes the same network
while training and when a folder is loaded. To add a task, write these three, its settings in
`finetune.settings`, and its line in `finetune.tasks.TASKS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from cluster.errors import UserError
from cluster.secrets import masked_url
from cluster.training.rank_context import RankContext
from finetune.image_inputs import ImageInput, encoded, listed, name_of
from finetune.settings import FinetuneSettings
from pretrain.data.reading.choosing import fraction_of_rows, rows_of_each_class
from pretrain.data.reading.in_sequence import batches_in_sequence
from pretrain.data.reading.loader import Batch, HostTransform, filled
from pretrain.data.reading.manifest import Manifest
from pretrain.data.reading.shards import Shards
from pretrain.data.views.augment import normalised
from pretrain.data.views.random_views import CentralCrop
from pretrain.data.views.recipes import ViewSpec
from pretrain.data.views.viewing import Viewer
from pretrain.encoders import Encoder
from pretrain.encoders.sources import EncoderSource
from pretrain.training.contract import StepOutput, Trainable


@dataclass(frozen=True)
class Evaluation:
    """What evaluating a model on a data set gives: `metrics` are numbers, `details` JSON for result.json and
    reports, `calibrated` what was fitted to it and replaces these keys of the model's config."""

    metrics: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    calibrated: dict[str, Any] = field(default_factory=dict)


class TaskModel(Trainable):
    """An encoder and a head. `mode` is that of the settings; with `linear` the encoder stays as it is, with
    `lora` its adapters learn (they are there already, see `finetune.adapting`)."""

    def __init__(self, encoder: Encoder, *, mode: str = "full") -> None:
        super().__init__()
        self.encoder, self.mode = encoder, mode
        if mode == "linear":
            encoder.requires_grad_(False)

    @property
    def frozen(self) -> bool:
        """Whether the head alone learns."""
        return self.mode == "linear"

    def train(self, mode: bool = True) -> Self:
        """Training mode; a frozen encoder stays as it is evaluated, and with `lora` so do its batch norms:
        their statistics are not kept with the adapters."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        if self.mode == "lora":
            for module in self.encoder.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """The encoder's maps, finest first, without gradient where the encoder is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps: list[Tensor] = self.encoder(images_BCHW)
        return maps

    def forward(self, inputs: Any) -> StepOutput:
        """The loss of what `Task.to_inputs` gives."""
        raise NotImplementedError


class Predictor(ABC):
    """A model with all it needs to predict for images. Made by `finetune.model.load_model`.

    `result_type` is the dataclass of what `results` gives.
    """

    result_type: ClassVar[type]

    def __init__(self, model: TaskModel, config: dict[str, Any]) -> None:
        self.model, self.config = model.eval(), config
        self.channels = model.encoder.in_channels
        self.transform = self.host_transform()

    @property
    def names(self) -> list[str]:
        """What the model can name: its classes, or its keywords."""
        return list(self.config.get("class_names") or self.config.get("keywords") or [])

    @property
    def columns(self) -> dict[str, str]:
        """What `evaluate` reads beside the image -> the column's name."""
        return dict(self.config["columns"])

    def host_transform(self) -> HostTransform:
        """What the host makes of an encoded image: the central square, unless a task needs another."""
        return CentralCrop(
            self.config["image_size"], fraction=self.config["crop_fraction"], channels=self.channels
        )

    @abstractmethod
    def results(self, arrays: list[np.ndarray], geometry_VB5: np.ndarray | None) -> list[Any]:
        """The predictions for each image of a batch, given what `transform` made of it."""

    @abstractmethod
    def evaluate(self, shards: Shards, context: RankContext, *, decode_threads: int = 1) -> Evaluation:
        """Evaluates on a whole labelled data set, each image once whatever the number of ranks;
        the same on every rank.

        `shards` hold `columns`. Raises UserError when they do not fit the model.
        """

    def batches(
        self, shards: Shards, context: RankContext, *, batch_size: int, decode_threads: int
    ) -> Iterator[Batch]:
        """What `transform` makes of this rank's share of a data set, each row that can be decoded once."""
        for batch in batches_in_sequence(
            shards,
            self.transform,
            batch_size=batch_size,
            rank=context.rank,
            world_size=context.world_size,
            decode_threads=decode_threads,
        ):
            if len(batch.row_ids):
                yield batch

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> Self:
        """Moves the model to a device."""
        self.model.to(device)
        return self

    def images(self, array: np.ndarray) -> Tensor:
        """uint8 [B, C, H, W] -> normalised images on the model's device."""
        return normalised(array, self.device, self.config["mean"], self.config["std"])

    def predict(self, images: ImageInput | Sequence[ImageInput], *, batch_size: int = 64) -> list[Any]:
        """Predicts for images: paths or URLs, encoded bytes, uint8 arrays [H, W, C], or PIL images;
        one or several.

        Raises UserError that names the image when one cannot be decoded.
        """
        given = listed(images)
        results: list[Any] = []
        for start in range(0, len(given), batch_size):
            some = given[start : start + batch_size]
            filling, bad = filled(self.transform, [encoded(image, self.channels) for image in some])
            for index, reason in bad.items():
                raise UserError(f"{name_of(some[index], start + index)}: {reason}")
            results.extend(self.results(filling.arrays, filling.geometry_VB5))
        return results


class Task(ABC):
    """A task while its model is trained.

    Attributes:
        best_metric: of `Evaluation.metrics`; the model with the best is kept, unless the settings name
            another.
        metric_names: of `Evaluation.metrics`, where they are known before; empty where they are not.
        predictor: its `Predictor`.
        layer_decay: unless the settings say another; below 1 what is pretrained moves less than what is
            random would, so a comparison is fair to it only where it need not move far.
        columns: the columns to read beside the image, by what they hold.
        config: what the model must know of data and head; `common_config` is added to it.
        notes: lines about the labels that a user should see before the run.
        findings: the same for result.json, JSON.
    """

    best_metric: str
    metric_names: tuple[str, ...] = ()
    predictor: ClassVar[type[Predictor]]
    layer_decay: ClassVar[float] = 1.0
    columns: dict[str, str]
    config: dict[str, Any]
    notes: Sequence[str] = ()
    findings: Mapping[str, Any] = MappingProxyType({})

    @staticmethod
    @abstractmethod
    def columns_of(settings: FinetuneSettings) -> dict[str, str]:
        """The columns to read beside the image, by what they hold."""

    @staticmethod
    def usable_rows(columns: Mapping[str, str], manifest: Manifest) -> np.ndarray | None:
        """int64, sorted: the rows that can be learnt from and evaluated on; None for all.
        The others are counted.
        """
        return None

    @classmethod
    def choose_rows(cls, settings: FinetuneSettings, train: Manifest) -> np.ndarray | None:
        """Sorted row ids int64 that are trained on, see `Manifest.chosen`; None for all."""
        return cls.few_labels(settings, train)

    @staticmethod
    def has_few_labels(settings: FinetuneSettings) -> bool:
        """Whether the settings leave labels out."""
        return settings.label_fraction < 1 or settings.labels_per_class > 0

    @classmethod
    def few_labels(
        cls, settings: FinetuneSettings, train: Manifest, *, classes_N: np.ndarray | None = None
    ) -> np.ndarray | None:
        """Row ids that `label_fraction` or `labels_per_class` leave, of each class where rows have one;
        None for all.
        """
        if not cls.has_few_labels(settings):
            return None
        if not settings.labels_per_class:
            return fraction_of_rows(
                train.num_rows, settings.label_fraction, seed=settings.seed, classes_N=classes_N
            )
        if settings.label_fraction < 1:
            raise UserError("label_fraction and labels_per_class contradict each other; give only one")
        if classes_N is None:
            raise UserError("labels_per_class needs one class an image; label_fraction works for every task")
        return rows_of_each_class(classes_N, settings.labels_per_class, seed=settings.seed)

    @abstractmethod
    def __init__(self, settings: FinetuneSettings, train: Manifest, validation: Manifest) -> None:
        """Reads what the labels of both data sets say; `train` holds the chosen rows. Raises UserError for
        labels that cannot be used."""

    def config_for(self, encoder: Encoder, size: int) -> dict[str, Any]:
        """`config`, with what depends on the encoder and the images' size too."""
        return self.config

    @classmethod
    @abstractmethod
    def new_model(cls, encoder: Encoder, config: dict[str, Any]) -> TaskModel:
        """The network that a config describes, around an encoder."""

    @abstractmethod
    def views(self, size: int) -> list[ViewSpec]:
        """How training images are cropped and changed."""

    @abstractmethod
    def to_inputs(self, images: list[Tensor], batch: Batch, device: torch.device) -> Any:
        """What the model takes, of the finished views and the rest of a batch."""

    def training_model(self, encoder: Encoder, config: dict[str, Any]) -> TaskModel:
        """`new_model` with what matters for training alone (label smoothing, class weights, ...)."""
        return self.new_model(encoder, config)

    def viewer(
        self, settings: FinetuneSettings, source: EncoderSource, size: int, context: RankContext
    ) -> Viewer:
        """What makes the training images."""
        return Viewer(
            self.views(size),
            seed=settings.seed,
            device=context.device,
            channels=source.encoder.in_channels,
            mean=source.mean,
            std=source.std,
            keep=settings.data.keep,
            keep_bytes=settings.data.keep_bytes,
        )


def common_config(
    settings: FinetuneSettings, source: EncoderSource, size: int, columns: dict[str, str]
) -> dict[str, Any]:
    """What every model folder says."""
    return {
        "task": settings.task,
        "mode": settings.mode,
        "encoder": source.encoder.spec,
        # which the user gives again when loading adapters, where a secret was in it
        "encoder_url": masked_url(settings.encoder),
        "image_size": size,
        "crop_fraction": settings.crop_fraction,
        "mean": list(source.mean),
        "std": list(source.std),
        "image_column": settings.data.image_column,
        "columns": columns,
    }
