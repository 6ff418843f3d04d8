"""Fovea's detectors as Hugging Face models, with the outputs that DetrImageProcessor takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from transformers.utils.generic import ModelOutput

from finetune.tasks.detection.hard_attention import make_attention_hard
from finetune.tasks.detection.heads import HEADS
from finetune.tasks.detection.pyramid import Pyramid
from pretrain.encoders.building import rebuild_encoder
from pretrain.exporting.modeling_fovea import FoveaConfig, FoveaPreTrainedModel

NOT_THIS = -30.0  # the logit of a class that a box is not


@dataclass
class FoveaObjectDetectionOutput(ModelOutput):
    """As of DETR: `logits` [B, boxes, classes + 1], the last for no object, and `pred_boxes` [B, boxes, 4],
    centre, width and height in fractions of the image's sides."""

    logits: Tensor | None = None
    pred_boxes: Tensor | None = None


class FoveaForObjectDetection(FoveaPreTrainedModel):
    """An encoder, a feature pyramid and a head; boxes come after non-maximum suppression, surest first.

    `processor.post_process_object_detection(outputs, threshold, target_sizes)` gives boxes in pixels,
    labels and scores.
    """

    def __init__(self, config: FoveaConfig) -> None:
        super().__init__(config)
        own = config.detector
        self.encoder = rebuild_encoder(config.encoder, config.arguments, where="config.json")
        if own["hard_attention_keys"]:
            make_attention_hard(
                self.encoder, num_keys=own["hard_attention_keys"], num_stages=own["hard_attention_stages"]
            )
        self.pyramid = Pyramid(self.encoder, strides=own["strides"], channels=own["channels"])
        self.head = HEADS[own["head"]](
            num_classes=config.num_labels,
            channels=own["channels"],
            depth=own["depth"],
            strides=own["strides"],
            anchors=own["anchors"],
            max_detections=own["max_detections"],
        )
        self.post_init()

    @torch.no_grad()
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        picture_sizes: Tensor | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """What is found on canvases [B, C, S, S] with images in their upper left corners.

        `pixel_mask` [B, S, S] is 1 on the image, as the image processor gives it; `picture_sizes` [B, 2],
        height and width, say the same more exactly.
        """
        if picture_sizes is None and pixel_mask is not None:
            picture_sizes = torch.stack([pixel_mask.amax(2).sum(1), pixel_mask.amax(1).sum(1)], 1)
        whole = [tuple(pixel_values.shape[-2:])] * len(pixel_values)
        sizes = (
            whole
            if picture_sizes is None
            else [(float(height), float(width)) for height, width in picture_sizes]
        )
        found = self.head.detections(
            ImageList(pixel_values, sizes), self.pyramid(self.encoder(pixel_values))
        )
        num, num_labels = max(1, *(len(one["scores"]) for one in found)), int(self.config.num_labels or 0)
        logits = pixel_values.new_full((len(found), num, num_labels + 1), NOT_THIS)
        logits[..., num_labels] = 0.0
        boxes = pixel_values.new_zeros(len(found), num, 4)
        for row, (one, (height, width)) in enumerate(zip(found, sizes, strict=True)):
            positions = torch.arange(len(one["scores"]), device=logits.device)
            scores = one["scores"].clamp(1e-6, 1 - 1e-6)
            logits[row, positions, one["labels"]] = scores.log()
            logits[row, positions, num_labels] = (1 - scores).log()
            corners = one["boxes"] / corners_scale(width, height, one["boxes"])
            boxes[row, : len(positions), :2] = (corners[:, :2] + corners[:, 2:]) / 2
            boxes[row, : len(positions), 2:] = corners[:, 2:] - corners[:, :2]
        output = FoveaObjectDetectionOutput(logits=logits, pred_boxes=boxes)
        return output if return_dict is not False else output.to_tuple()


def corners_scale(width: float, height: float, like: Tensor) -> Tensor:
    """[4]: what corners are divided by to be fractions."""
    return like.new_tensor([width, height, width, height])
