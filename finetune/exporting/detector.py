"""A detector for other programs: boxes after non-maximum suppression,
equally many for each image of a batch.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from finetune.exporting.batched_detector import BatchedDetector
from finetune.tasks.detection import hard_attention, heads, pyramid
from finetune.tasks.detection.model import Detector
from finetune.tasks.detection.predictor import ObjectDetector
from finetune.tasks.detection.views import image_on_canvas
from pretrain.exporting.exported import (
    LETTERBOX,
    Answers,
    Exported,
    Framing,
    HuggingFace,
    model_source,
    of_model,
    run_beside,
)

MODELING = "modeling_fovea_detection"
HEAD = (
    "head",
    "strides",
    "anchors",
    "channels",
    "depth",
    "max_detections",
    "hard_attention_keys",
    "hard_attention_stages",
)


def export_detector(url: str, predictor: ObjectDetector, facts: dict[str, Any]) -> Exported:
    """A detector with all that its exports need."""
    model, config = cast(Detector, predictor.model), predictor.config
    mean, std, size = tuple(config["mean"]), tuple(config["std"]), config["image_size"]

    def answer(arrays: list[np.ndarray], geometry_VB5: np.ndarray | None) -> Answers:
        assert geometry_VB5 is not None
        sizes = [image_on_canvas(geometry_VB5[:, index], size) for index in range(len(arrays[0]))]
        found = model.detect(predictor.images(arrays[0]), sizes)
        answers = {
            "boxes": np.zeros((len(found), config["max_detections"], 4)),
            "scores": np.zeros((len(found), config["max_detections"])),
            "labels": np.full((len(found), config["max_detections"]), -1),
        }
        for row, (one, (height, width)) in enumerate(zip(found, sizes, strict=True)):
            num = len(one["scores"])
            answers["boxes"][row, :num] = one["boxes"].numpy() / (width, height, width, height)
            answers["scores"][row, :num] = one["scores"].numpy()
            answers["labels"][row, :num] = one["labels"].numpy()
        return answers

    def answers_of(outputs: dict[str, np.ndarray], geometry_VB5: np.ndarray | None) -> Answers:
        if geometry_VB5 is None:  # by transformers, in fractions already
            return outputs
        sizes = np.array(
            [image_on_canvas(geometry_VB5[:, index], size) for index in range(len(outputs["boxes"]))]
        )
        return {**outputs, "boxes": outputs["boxes"] / sizes[:, None, [1, 0, 1, 0]]}

    return Exported(
        url,
        config["task"],
        model.encoder.eval(),
        mean,
        std,
        Framing(LETTERBOX, size),
        BatchedDetector(model, mean, std, size=size).eval(),
        predictor.transform,
        answer,
        answers_of,
        HuggingFace(
            "AutoModelForObjectDetection",
            "FoveaForObjectDetection",
            MODELING,
            model_source("finetune.exporting", MODELING),
            modules=(pyramid, heads, hard_attention),
            config={"detector": {name: config[name] for name in HEAD}},
        ),
        lambda: of_model(model, model.encoder),
        class_names=predictor.class_names,
        facts={**facts, "head": config["head"], "strides of the pyramid": config["strides"]},
        run=run_beside(url),
        images_bound=0.25,
        onnx_bound=1e-3,  # of two boxes that overlap by the limit, rounding may keep another
    )
