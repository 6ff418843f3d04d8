"""The schema of `python -m finetune`."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.settings import setting
from pretrain.training.settings import (
    ClusterSettings,
    DataSettings,
    EncoderSettings,
    OptimizerSettings,
    TrainingSettings,
)

TASK_NAMES = ("classification",)


@dataclass(frozen=True)
class ClassificationSettings:
    """One class an image."""

    label_column: str = setting("label", help="column of the labels, text or whole number")
    smallest_crop: float = setting(
        0.35, minimum=0.01, maximum=1, help="smallest share of an image's area that a training crop takes"
    )
    label_smoothing: float = setting(0.0, minimum=0, maximum=0.99, help="share of the target spread over all classes")


@dataclass(frozen=True)
class LoraSettings:
    """Adapters of mode lora."""

    rank: int = setting(4, minimum=1, help="of the update of each layer; what is saved grows with it")
    alpha: float | None = setting(None, minimum=0, help="the update is scaled by alpha / rank; null: by 1")
    dropout: float = setting(0.0, minimum=0, maximum=0.99, help="share of the adapters' inputs that is left out")


@dataclass(frozen=True)
class FinetuneSettings:
    """Everything that `python -m finetune` can be told. `data.url` holds the training rows."""

    out: str = setting(help="folder of the run, a path or any fsspec URL; the same out continues the run")
    task: str = setting("classification", choices=TASK_NAMES, help="what the model is for")
    encoder: str = setting(
        help="encoder folder (URL), timm:NAME, random, or random:URL and random:timm:NAME (that network, fresh weights)"
    )
    compare: list[str] = setting(
        ["random"],
        help="encoders to set beside it, each trained the same way in OUT/compare; random is the same network with fresh "
        "weights; [] for none",
    )
    architecture: EncoderSettings = setting(EncoderSettings, help="network when encoder is random")
    mode: str = setting(
        "full",
        choices=["linear", "full", "lora"],
        help="linear: only the head learns; full: all learns; lora: head and adapters of low rank, saved without the encoder",
    )
    lora: LoraSettings = setting(LoraSettings, help="adapters of mode lora")
    seed: int = setting(0, minimum=0, help="of the head's weights, the order and the views")
    data: DataSettings = setting(DataSettings, help="training data")
    validation_url: str = setting(help="labelled shards that the model is judged by")
    image_size: int | None = setting(None, help="side of an image in pixels; null takes the encoder's")
    crop_share: float = setting(0.875, minimum=0.01, maximum=1, help="part of the short side judged by")
    layer_decay: float = setting(
        0.75, minimum=0.01, maximum=1, help="learning rate of a layer over that of the next (mode full)"
    )
    evaluate_every_epochs: float = setting(5.0, minimum=0, help="epochs between evaluations; 0 only at the end")
    classification: ClassificationSettings = setting(ClassificationSettings, help="classification")
    optimizer: OptimizerSettings = setting(OptimizerSettings, help="optimizer")
    training: TrainingSettings = setting(TrainingSettings, help="training")
    cluster: ClusterSettings = setting(ClusterSettings, help="cluster")
