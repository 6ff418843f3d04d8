"""The detector: an encoder, a feature pyramid on its maps, and one of torchvision's heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from cluster.errors import UserError, choose
from finetune.tasks.base import TaskModel
from finetune.tasks.detection.heads import HEADS, Targets
from finetune.tasks.detection.pyramid import GROUPS, Pyramid
from pretrain.encoders import Encoder
from pretrain.training.contract import StepOutput


class Detector(TaskModel):
    """Finds boxes on square canvases.

    Args:
        encoder: takes images_BCHW.
        head: of `heads.HEADS`.
        num_classes: without a background.
        strides: of the pyramid, finest first, each twice the one before.
        anchors: for each stride the width and height of its anchors in pixels; FCOS has none.
        channels: of the pyramid and the head; a multiple of 32.
        depth: convolutions of the head before the last ones.
        max_detections: maximum detections per image.
        mode: with `linear` the encoder stays as it is, and pyramid and head learn.

    Raises UserError for an unknown head or channels that cannot be.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        head: str,
        num_classes: int,
        strides: Sequence[int],
        anchors: Sequence[Sequence[Sequence[float]]],
        channels: int,
        depth: int,
        max_detections: int,
        mode: str = "full",
    ) -> None:
        super().__init__(encoder, mode=mode)
        if channels % GROUPS:
            raise UserError(
                f"detection.channels={channels} is not possible: it must be a multiple of {GROUPS}"
            )
        self.pyramid = Pyramid(encoder, strides=strides, channels=channels)
        self.head = HEADS[choose("detection.head", head, HEADS)](
            num_classes=num_classes,
            channels=channels,
            depth=depth,
            strides=strides,
            anchors=anchors,
            max_detections=max_detections,
        )

    def forward(self, inputs: tuple[Tensor, Targets]) -> StepOutput:
        """The sum of the head's losses for (images_BCHW, targets)."""
        images_BCHW, targets = inputs
        side = images_BCHW.shape[-2:]
        images = ImageList(images_BCHW, [(side[0], side[1])] * len(images_BCHW))
        losses = self.head.losses(images, self.pyramid(self.maps(images_BCHW)), targets)
        logs = {f"loss_{name}": loss.detach() for name, loss in losses.items()}
        return StepOutput(loss=torch.stack(list(losses.values())).sum(), logs=logs)

    @torch.no_grad()
    def detect(self, images_BCHW: Tensor, sizes: Sequence[tuple[float, float]]) -> list[dict[str, Tensor]]:
        """Of each image `boxes` [N, 4] in pixels of the canvas, `scores` and `labels`; `sizes` are the
        height and width of the image on it, in its upper left corner."""
        images = ImageList(images_BCHW, list(sizes))
        return self.head.detections(images, self.pyramid(self.maps(images_BCHW)))
