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

TASK_NAMES = ("classification", "detection")


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
class DetectionSettings:
    """Boxes and their classes."""

    objects_column: str = setting("objects", help="column of boxes and classes: struct of lists, or list of structs")
    box_format: str = setting(
        "xywh",
        choices=["xywh", "xyxy"],
        help="four numbers of a box, in pixels: left, top, width, height, or two corners",
    )
    head: str = setting("fcos", choices=["fcos", "retinanet", "faster_rcnn"], help="what finds boxes on the maps")
    channels: int = setting(128, minimum=32, help="of the feature pyramid and the head, a multiple of 32")
    depth: int = setting(4, minimum=1, maximum=4, help="convolutions of the head before the last ones")
    strides: list[int] = setting(
        [], help="of the pyramid's maps, each twice the one before; empty: fitted to the boxes of the training data"
    )
    anchors_a_place: int = setting(3, minimum=1, help="anchors at each place of a map, fitted likewise; FCOS has none")
    most_detections: int = setting(100, minimum=1, help="detections an image, at most")
    score_threshold: float = setting(0.3, minimum=0, maximum=1, help="how sure predict is at least, unless it is told")
    smallest_scale: float = setting(
        0.5, minimum=0.05, help="smallest size of a training picture on its canvas; 1 is just all of it, less zooms out"
    )
    largest_scale: float = setting(2.0, minimum=0.05, help="largest size of it; more than 1 zooms in, which crops")
    smallest_visible: float = setting(
        0.3, minimum=0, maximum=1, help="share of a box's area that a crop must show, or the box is not trained on"
    )
    flip: float = setting(0.5, minimum=0, maximum=1, help="probability of mirroring left and right")
    flip_vertical: float = setting(0.0, minimum=0, maximum=1, help="probability of mirroring top and bottom")
    colour: float = setting(
        0.5, minimum=0, maximum=2.5, help="strength of the jitter of colours; 0 leaves them as they are"
    )
    hard_attention_keys: int = setting(
        0,
        minimum=0,
        help="keys that each query of the last stages' attention keeps (hard attention); 0: as the encoder is",
    )
    hard_attention_stages: int = setting(
        1, minimum=1, help="how many of the encoder's last stages with attention that is"
    )


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
    tracking: list[str] = setting(
        [], help="mlflow, wandb: send the numbers there too; TensorBoard's are always written"
    )
    data: DataSettings = setting(DataSettings, help="training data")
    validation_url: str = setting(help="labelled shards that the model is judged by")
    image_size: int | None = setting(None, help="side of an image in pixels; null takes the encoder's")
    crop_share: float = setting(0.875, minimum=0.01, maximum=1, help="part of the short side judged by")
    layer_decay: float = setting(
        0.75, minimum=0.01, maximum=1, help="learning rate of a layer over that of the next (mode full)"
    )
    report_images: int = setting(
        400, minimum=0, help="images that report.html looks at when the run ends; 0: a report of numbers alone"
    )
    evaluate_every_epochs: float = setting(5.0, minimum=0, help="epochs between evaluations; 0 only at the end")
    classification: ClassificationSettings = setting(ClassificationSettings, help="classification")
    detection: DetectionSettings = setting(DetectionSettings, help="detection")
    optimizer: OptimizerSettings = setting(OptimizerSettings, help="optimizer")
    training: TrainingSettings = setting(TrainingSettings, help="training")
    cluster: ClusterSettings = setting(ClusterSettings, help="cluster")
