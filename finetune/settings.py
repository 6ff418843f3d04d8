"""The schema of `python -m finetune`."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import UserError
from cluster.settings import setting
from pretrain.training.settings import (
    ClusterSettings,
    DataSettings,
    EncoderSettings,
    OptimizerSettings,
    TrainingSettings,
)

TASK_NAMES = ("classification", "detection", "summarization")


@dataclass(frozen=True)
class ClassificationSettings:
    """One class an image, or several."""

    label_column: str = setting(
        "label",
        help="column of the labels, text or whole numbers; a column of lists makes a multi-label model",
    )
    head: str = setting(
        "pooled",
        choices=["pooled", "flattened"],
        help="what the linear layer sees of the last map: its mean, or all of it (images of one size)",
    )
    balance: str = setting(
        "none",
        choices=["none", "weights", "sampling"],
        help="for rare classes: their images weigh more in the loss, or come as often as those of the "
        "largest class",
    )
    mixup: float = setting(
        0.0, minimum=0, help="mixes pairs of images by fractions from Beta(x, x); 0 is off, 0.2 to 0.8 usual"
    )
    cutmix: float = setting(
        0.0, minimum=0, help="puts a box of one image into another, its area from Beta(x, x); 1 is usual"
    )
    threshold: float = setting(
        0.5,
        minimum=0,
        maximum=1,
        help="probability from which a class counts as present (multi-label)",
    )
    min_crop: float = setting(
        0.35, minimum=0.01, maximum=1, help="minimum fraction of an image's area that a training crop takes"
    )
    label_smoothing: float = setting(
        0.0, minimum=0, maximum=0.99, help="fraction of the target spread over all classes"
    )


@dataclass(frozen=True)
class LoraSettings:
    """Adapters of mode lora."""

    rank: int = setting(4, minimum=1, help="rank of the update of each layer; the saved model grows with it")
    alpha: float | None = setting(None, above=0, help="the update is scaled by alpha / rank; null: by 1")
    dropout: float = setting(
        0.0, minimum=0, maximum=0.99, help="fraction of the adapters' inputs that is left out"
    )


@dataclass(frozen=True)
class DetectionSettings:
    """Boxes and their classes."""

    objects_column: str = setting(
        "objects", help="column of boxes and classes: struct of lists, or list of structs"
    )
    box_format: str = setting(
        "xywh",
        choices=["xywh", "xyxy"],
        help="four numbers of a box, in pixels: left, top, width, height, or two corners",
    )
    head: str = setting(
        "fcos", choices=["fcos", "retinanet", "faster_rcnn"], help="what finds boxes on the maps"
    )
    channels: int = setting(
        128, minimum=32, help="channels of the feature pyramid and the head, a multiple of 32"
    )
    depth: int = setting(4, minimum=1, maximum=4, help="convolutions of the head before the last ones")
    strides: list[int] = setting(
        [],
        minimum=1,
        help="strides of the pyramid's maps, each twice the one before; empty: fitted to the boxes of "
        "the training data",
    )
    anchors_per_position: int = setting(
        3, minimum=1, help="anchors at each position of a map, fitted likewise; FCOS has none"
    )
    max_detections: int = setting(100, minimum=1, help="maximum detections per image")
    score_threshold: float = setting(
        0.3,
        minimum=0,
        maximum=1,
        help="minimum score of the boxes that predict reports, unless it is given another",
    )
    min_scale: float = setting(
        0.5,
        minimum=0.05,
        help="minimum scale of a training image on its canvas; 1 fits it exactly, below 1 zooms out",
    )
    max_scale: float = setting(
        2.0, minimum=0.05, help="maximum scale of a training image; above 1 zooms in and crops"
    )
    min_visible: float = setting(
        0.3,
        minimum=0,
        maximum=1,
        help="minimum fraction of a box's area that a crop must show; otherwise the box is not trained on",
    )
    flip: float = setting(0.5, minimum=0, maximum=1, help="probability of mirroring left and right")
    flip_vertical: float = setting(0.0, minimum=0, maximum=1, help="probability of mirroring top and bottom")
    colour: float = setting(
        0.5, minimum=0, maximum=2.5, help="strength of the jitter of colours; 0 leaves them as they are"
    )
    hard_attention_keys: int = setting(
        0,
        minimum=0,
        help="keys that each query of the last stages' attention keeps (hard attention); 0: the "
        "encoder's own attention, unchanged",
    )
    hard_attention_stages: int = setting(
        1, minimum=1, help="how many of the encoder's last stages with attention this applies to"
    )

    def __post_init__(self) -> None:
        if self.min_scale > self.max_scale:
            raise UserError(
                f"detection.min_scale={self.min_scale:g} is not possible: it is more than "
                f"detection.max_scale={self.max_scale:g}"
            )


@dataclass(frozen=True)
class SummarizationSettings:
    """Keywords and a sentence."""

    captions_column: str = setting("captions", help="column of the captions: a text, or a list of texts")
    keywords_column: str | None = setting(
        None,
        help="column of keywords: text or whole numbers, or a list of them; null mines them from the "
        "captions",
    )
    num_keywords: int = setting(256, minimum=0, help="maximum number of keywords, the most frequent ones")
    keyword_min_images: int = setting(
        10, minimum=1, help="minimum number of training images that a keyword occurs in"
    )
    keyword_max_fraction: float = setting(
        0.25, minimum=0, maximum=1, help="mined terms in more than this fraction of the images are dropped"
    )
    stop_words: list[str] = setting(
        [],
        help="terms not to mine, in addition to those that say nothing about their image, which are always "
        "dropped",
    )
    keyword_threshold: float | None = setting(
        None,
        minimum=0,
        maximum=1,
        help="score from which a keyword is reported; null: the one with the best F1 on the validation data",
    )
    keyword_weight: float = setting(
        10.0, minimum=0, help="weight of the keywords' loss, relative to the sentence's"
    )
    vocabulary_size: int = setting(4096, minimum=300, help="maximum number of tokens of the byte-level BPE")
    max_tokens: int = setting(48, minimum=2, help="longest sentence in tokens, its end included")
    width: int = setting(128, minimum=8, help="channels of keywords and decoder")
    depth: int = setting(2, minimum=1, help="layers of the decoder")
    num_heads: int = setting(4, minimum=1, help="attention heads of keywords and decoder")
    num_maps: int = setting(
        1,
        minimum=1,
        help="number of the encoder's last maps that are used, summed at the size of the finest",
    )
    num_fed: int = setting(8, minimum=0, help="most likely keywords that the decoder is given")
    dropout: float = setting(0.1, minimum=0, maximum=0.9, help="dropout in the decoder")
    label_smoothing: float = setting(
        0.0, minimum=0, maximum=0.99, help="fraction of a token's target spread over all"
    )
    num_beams: int = setting(3, minimum=1, help="beams of the search; 1 is greedy")
    length_penalty: float = setting(
        0.6, minimum=0, help="length penalty of the search; 0 prefers short sentences, 1 long ones"
    )
    min_crop: float = setting(
        0.8, minimum=0.01, maximum=1, help="minimum fraction of an image's area that a training crop takes"
    )
    flip: bool = setting(
        False, help="mirror half of the images; captions must then not mention left or right"
    )
    thumbnail_fraction: float = setting(
        0.6,
        minimum=0,
        maximum=1,
        help="fraction of the keywords' attention that the thumbnail contains; 0 for no thumbnail",
    )

    def __post_init__(self) -> None:
        if self.width % 4 or self.width % max(1, self.num_heads):
            raise UserError(
                f"summarization.width={self.width} is not possible: it must be divisible by 4 and by "
                f"num_heads ({self.num_heads})"
            )


@dataclass(frozen=True)
class FinetuneSettings:
    """Everything that `python -m finetune` can be told. `data.url` holds the training rows."""

    out: str = setting(help="folder of the run, a path or any fsspec URL; the same out continues the run")
    task: str = setting("classification", choices=TASK_NAMES, help="what the model is for")
    encoder: str = setting(
        help="encoder folder (URL), timm:NAME, random, or random:URL and random:timm:NAME (that network, "
        "fresh weights)"
    )
    compare: list[str] = setting(
        ["random"],
        help="encoders to compare with, each trained the same way in OUT/compare; random is the same "
        "network with fresh "
        "weights; [] for none",
    )
    architecture: EncoderSettings = setting(EncoderSettings, help="network when encoder is random")
    mode: str = setting(
        "full",
        choices=["linear", "full", "lora"],
        help="linear: only the head is trained; full: everything is; lora: the head and low-rank "
        "adapters, saved without the encoder",
    )
    lora: LoraSettings = setting(LoraSettings, help="adapters of mode lora")
    seed: int = setting(
        0, minimum=0, maximum=2**63 - 1, help="seed of the head's weights, the order and the views"
    )
    tracking: list[str] = setting(
        [], help="mlflow, wandb: send the numbers there too; TensorBoard's are always written"
    )
    data: DataSettings = setting(DataSettings, help="training data")
    validation_url: str = setting(help="labelled shards that the model is evaluated on")
    image_size: int | None = setting(
        None, minimum=8, help="side of an image in pixels; null takes the encoder's"
    )
    crop_fraction: float = setting(
        0.875, minimum=0.01, maximum=1, help="fraction of the short side that evaluation sees"
    )
    layer_decay: float | None = setting(
        None,
        minimum=0.01,
        maximum=1,
        help="learning rate of a layer divided by that of the next, for pretrained layers (mode full); "
        "null: 0.75 for "
        "classification, 1 (all alike) for detection and summarization",
    )
    report_images: int = setting(
        400, minimum=0, help="images used for report.html when the run ends; 0: only numbers"
    )
    label_fraction: float = setting(
        1.0,
        minimum=1e-6,
        maximum=1,
        help="fraction of the labels to learn from, the same for each class; a smaller set is part of a "
        "larger one",
    )
    labels_per_class: int = setting(
        0, minimum=0, help="number of labels of each class to learn from; 0 for all"
    )
    best_metric: str | None = setting(
        None, help="metric that decides which model is kept; null: the task's own"
    )
    patience: int = setting(
        0, minimum=0, help="the run ends after this many evaluations without a better one; 0: never"
    )
    evaluate_every_epochs: float = setting(
        5.0, minimum=0, help="epochs between evaluations; 0 only at the end"
    )
    classification: ClassificationSettings = setting(ClassificationSettings, help="classification")
    detection: DetectionSettings = setting(DetectionSettings, help="detection")
    summarization: SummarizationSettings = setting(SummarizationSettings, help="summarization")
    optimizer: OptimizerSettings = setting(OptimizerSettings, help="optimizer")
    training: TrainingSettings = setting(TrainingSettings, help="training")
    cluster: ClusterSettings = setting(ClusterSettings, help="cluster")
