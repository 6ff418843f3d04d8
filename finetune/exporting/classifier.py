"""A classifier for other programs."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from finetune.tasks.classification import ImageClassifier
from finetune.tasks.classification.model import Classifier
from pretrain.exporting.exported import (
    CENTRE,
    MODELING,
    Answers,
    Exported,
    ForPixels,
    Framing,
    HuggingFace,
    model_source,
    of_encoder,
    run_beside,
)


class Logits(ForPixels):
    """The logits of a classifier."""

    output_names = ("logits",)

    def __init__(self, model: Classifier, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(mean, std)
        self.model = model

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor]:
        """`logits`."""
        return (self.model.logits_of(self.model.encoder(self.normalised(images_BCHW))),)


def export_classifier(url: str, predictor: ImageClassifier, facts: dict[str, Any]) -> Exported:
    """A classifier with all that its exports need."""
    model, config = cast(Classifier, predictor.model), predictor.config
    mean, std, size = tuple(config["mean"]), tuple(config["std"]), config["image_size"]
    head = nn.ModuleDict({"norm": model.norm, "head": model.head}).eval()

    def probabilities(logits_BC: Tensor) -> Answers:
        return {"probabilities": predictor.as_probabilities(logits_BC).numpy()}

    def answer(arrays: list[np.ndarray], geometry_VB5: np.ndarray | None) -> Answers:
        return probabilities(predictor.logits(arrays[0]))

    of_transformers = {
        "normalised_features": bool(model.norm.state_dict()),
        "grid": None if model.grid is None else list(model.grid),
        "problem_type": "multi_label_classification"
        if predictor.multi_label
        else "single_label_classification",
    }
    return Exported(
        url,
        config["task"],
        model.encoder.eval(),
        mean,
        std,
        Framing(CENTRE, size, config["crop_fraction"]),
        Logits(model, mean, std).eval(),
        predictor.transform,
        answer,
        lambda outputs, geometry: probabilities(torch.from_numpy(outputs["logits"])),
        HuggingFace(
            "AutoModelForImageClassification",
            "FoveaForImageClassification",
            MODELING,
            model_source("pretrain.exporting", MODELING),
            config=of_transformers,
        ),
        lambda: of_encoder(model.encoder) | head.state_dict(),
        head=head,
        fixed_size=model.grid is not None,
        class_names=predictor.class_names,
        facts=facts,
        run=run_beside(url),
    )
