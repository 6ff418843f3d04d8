"""The schema of `python -m pretrain`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.settings import setting
from pretrain.papers import defaults_of
from pretrain.training.settings import (
    ClusterSettings,
    DataSettings,
    OptimizerSettings,
    TrainingSettings,
)


@dataclass(frozen=True)
class PretrainEncoderSettings:
    """Which network, and which weights to start from."""

    url: str | None = setting(
        None,
        help="weights to start from: a saved encoder (path or URL), timm:NAME, timm:NAME@FILE, "
        "timm:local-dir:FOLDER or "
        "package:efficientnet_lite0; null: fresh ones",
    )
    name: str | None = setting(
        None,
        help="convattn_nano|tiny|small|base, convattn_classic or timm:NAME; null: that of url, "
        "convattn_small without one",
    )
    arguments: dict[str, Any] = setting({}, help="keyword arguments of the encoder")
    layer_decay: float = setting(
        1.0,
        minimum=0.01,
        maximum=1,
        help="learning rate of a layer divided by that of the next; below 1 changes early layers less",
    )
    weights_sha256: str | None = setting(
        None, help="checksum that the weights of url must have; filled in when the run starts"
    )


@dataclass(frozen=True)
class MethodSettings:
    """How it learns without labels."""

    name: str = setting("simclr", help="self-supervised method")
    arguments: dict[str, Any] = setting({}, help="keyword arguments of the method")
    images_per_pass: int = setting(
        0,
        minimum=0,
        help="views that a worker sends through the encoder at once: fewer need less memory, the loss is "
        "the same; 0 for all",
    )
    exact_pieces: int = setting(
        0,
        minimum=0,
        help="the encoder sees the global batch in this many equal pieces, whose gradients are summed "
        "exactly: bit-identical "
        "on any number of workers that divides it; every worker computes the loss of the whole batch; 0: "
        "off",
    )
    keep: float = setting(
        0.0,
        minimum=0,
        maximum=1,
        help="fraction of the way back to the weights of encoder.url that a step takes at the peak "
        "learning rate, against "
        "forgetting; 0.01 to 0.1 is usual, 0 is off",
    )
    on_collapse: str = setting(
        "warn", choices=["warn", "stop"], help="what to do when all embeddings become the same"
    )


@dataclass(frozen=True)
class ViewSettings:
    """The views that the method sees."""

    recipe: str | None = setting(
        None, help="simclr, moco_v2, byol, vicreg, swav, dino or densecl; null is that of the method's paper"
    )
    size: int = setting(224, minimum=8, help="side of a view in pixels")
    arguments: dict[str, Any] = setting(
        {}, help="keyword arguments of the recipe (crop_scale, strength, ...)"
    )
    channels: int = setting(
        3,
        minimum=1,
        help="3: RGB; 1: grey; else the images' own bands (.npy [height, width, bands], PNG, TIFF)",
    )
    mean: list[float] | None = setting(
        None,
        minimum=-100,
        maximum=100,
        help="subtracted from each channel (values in [0, 1]); null: that of encoder.url, else ImageNet's",
    )
    std: list[float] | None = setting(
        None, above=0, help="each channel is divided by this; null: that of encoder.url, else ImageNet's"
    )


@dataclass(frozen=True)
class KnnSettings:
    """kNN accuracy and a linear probe on labelled data while pretraining;
    the labels teach the encoder nothing.
    """

    train_url: str | None = setting(None, help="labelled shards to search for neighbours; null for no kNN")
    test_url: str | None = setting(
        None, help="labelled shards whose images are classified by their neighbours"
    )
    label_column: str = setting("label", help="column of the labels, text or whole number")
    every_epochs: float = setting(
        10.0,
        minimum=0,
        help="epochs between two evaluations: kNN accuracy, linear probe, RankMe; 0 only at the end",
    )
    neighbours: int = setting(20, minimum=1, help="neighbours that vote")
    linear: bool = setting(True, help="also a linear probe on the same features")
    crop_fraction: float = setting(
        0.875, minimum=0.01, maximum=1, help="fraction of the short side that is evaluated"
    )


@dataclass(frozen=True)
class PretrainSettings:
    """Everything that `python -m pretrain` can be told."""

    out: str = setting(help="folder of the run, a path or any fsspec URL; the same out continues the run")
    seed: int = setting(0, minimum=0, maximum=2**63 - 1, help="seed of the weights, the order and the views")
    tracking: list[str] = setting(
        [], help="mlflow, wandb: send the numbers there too; TensorBoard's are always written"
    )
    rankme_images: int = setting(
        25600,
        minimum=0,
        help="images for the label-free score RankMe; 0 for none",
    )
    patience: int = setting(
        0,
        minimum=0,
        help="the run ends after this many evaluations in a row without a better best_metric; 0: never",
    )
    best_metric: str | None = setting(
        None,
        help="knn_accuracy, linear_accuracy or rankme; null: knn_accuracy where there are labels, else "
        "rankme",
    )
    report_images: int = setting(
        400, minimum=0, help="images used for report.html when the run ends; 0: only numbers"
    )
    data: DataSettings = setting(DataSettings, help="data")
    views: ViewSettings = setting(ViewSettings, help="views")
    encoder: PretrainEncoderSettings = setting(PretrainEncoderSettings, help="encoder")
    method: MethodSettings = setting(MethodSettings, help="method")
    optimizer: OptimizerSettings = setting(OptimizerSettings, help="optimizer")
    training: TrainingSettings = setting(TrainingSettings, help="training")
    knn: KnnSettings = setting(KnnSettings, help="kNN")
    cluster: ClusterSettings = setting(ClusterSettings, help="cluster")

    @staticmethod
    def defaults_beneath(given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings of the method's paper, beneath everything that is set."""
        return defaults_of(given)
