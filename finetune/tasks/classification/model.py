"""The classifier: an encoder and a linear layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from finetune.tasks.base import TaskModel
from pretrain.encoders import Encoder, pooled
from pretrain.training.loop import StepOutput


class Classifier(TaskModel):
    """An encoder and a linear layer on its pooled last map.

    Args:
        encoder: takes images_BCHW.
        num_classes: at least 2.
        mode: with `linear` only the head learns. Features are then normalised by the statistics of the training data (batch
            norm without gain), so that one learning rate suits every encoder, as in MAE's linear probe
            (https://arxiv.org/abs/2111.06377).
        label_smoothing: of the cross entropy.
    """

    def __init__(self, encoder: Encoder, *, num_classes: int, mode: str = "full", label_smoothing: float = 0.0) -> None:
        super().__init__(encoder, mode=mode)
        self.label_smoothing = label_smoothing
        features = encoder.channels[-1]
        self.norm = nn.BatchNorm1d(features, affine=False) if self.frozen else nn.Identity()
        self.head = nn.Linear(features, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """[B, num_classes], float32."""
        return self.logits_of(self.maps(images_BCHW))

    def logits_of(self, maps: list[Tensor]) -> Tensor:
        """[B, num_classes], float32, of the encoder's maps."""
        logits: Tensor = self.head(self.norm(pooled(maps).float()))
        return logits

    def position_logits(self, images_BCHW: Tensor) -> Tensor:
        """Logits of each place of the last map, [B, num_classes, H, W]; their mean is `logits` (CAM, 1512.04150)."""
        last_BCHW = self.maps(images_BCHW)[-1].float()
        batch, channels, height, width = last_BCHW.shape
        places = self.norm(last_BCHW.permute(0, 2, 3, 1).reshape(-1, channels))
        return self.head(places).view(batch, height, width, -1).permute(0, 3, 1, 2)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> StepOutput:
        """Cross entropy of (images_BCHW, class ids [B])."""
        images_BCHW, labels_B = inputs
        logits = self.logits(images_BCHW)
        loss = F.cross_entropy(logits, labels_B, label_smoothing=self.label_smoothing)
        right = (logits.detach().argmax(1) == labels_B).float().mean()
        return StepOutput(loss=loss, logs={"train_accuracy": right})
