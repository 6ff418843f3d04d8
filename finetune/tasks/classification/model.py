"""The classifier: an encoder and a linear layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.errors import UserError
from finetune.tasks.base import TaskModel
from pretrain.encoders import Encoder, pooled
from pretrain.training.contract import StepOutput


class Classifier(TaskModel):
    """An encoder and a linear layer on its pooled last map, or on all of it.

    Args:
        encoder: takes images_BCHW.
        num_classes: at least 2.
        mode: with `linear` only the head learns. Features are then normalised by the statistics of the
            training data (batch norm without gain), so that one learning rate suits every encoder, as in
            MAE's linear probe (https://arxiv.org/abs/2111.06377).
        flattened_size: side of the images when the head sees the whole last map, laid flat, and not its
            mean.
        multi_label: an image may show any number of classes; sigmoids take the place of the softmax.
        label_smoothing: of the cross entropy.
        class_weights: float [num_classes], the weight of an image in the loss by its class; of a class's
            positives where there are several. Not part of the state: it is of the training data.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        encoder: Encoder,
        *,
        num_classes: int,
        mode: str = "full",
        flattened_size: int | None = None,
        multi_label: bool = False,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__(encoder, mode=mode)
        self.label_smoothing, self.multi_label = label_smoothing, multi_label
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.grid = None if flattened_size is None else _last_grid(encoder, flattened_size)
        features = encoder.channels[-1] * (1 if self.grid is None else self.grid[0] * self.grid[1])
        self.norm = nn.BatchNorm1d(features, affine=False) if self.frozen else nn.Identity()
        self.head = nn.Linear(features, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """[B, num_classes], float32."""
        return self.logits_of(self.maps(images_BCHW))

    def logits_of(self, maps: list[Tensor]) -> Tensor:
        """[B, num_classes], float32, of the encoder's maps."""
        features = pooled(maps) if self.grid is None else self._checked(maps[-1]).flatten(1)
        logits: Tensor = self.head(self.norm(features.float()))
        return logits

    def position_logits(self, images_BCHW: Tensor) -> Tensor:
        """Logits of each position of the last map, [B, num_classes, H, W];
        their mean is `logits` (CAM, 1512.04150).
        """
        last_BCHW = self.maps(images_BCHW)[-1].float()
        batch, channels, height, width = last_BCHW.shape
        if self.grid is not None:
            flat = self.norm(self._checked(last_BCHW).flatten(1)).view(batch, channels, height, width)
            weight = self.head.weight.view(-1, channels, height, width)
            return (
                height * width * torch.einsum("bchw,kchw->bkhw", flat, weight)
                + self.head.bias[:, None, None]
            )
        positions = self.norm(last_BCHW.permute(0, 2, 3, 1).reshape(-1, channels))
        return self.head(positions).view(batch, height, width, -1).permute(0, 3, 1, 2)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> StepOutput:
        """The loss of images_BCHW and their targets:
        class ids int64 [B], or float [B, num_classes] in [0, 1].
        """
        images_BCHW, targets = inputs
        logits = self.logits(images_BCHW)
        if self.multi_label:
            smoothed = targets * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
            loss = F.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=self.class_weights)
            found, true = logits.detach() > 0, targets > 0.5
            f1 = 2 * (found & true).sum() / (found.sum() + true.sum()).clamp_min(1)
            return StepOutput(loss=loss, logs={"train_micro_f1": f1})
        # weighted one by one and averaged, so that the gradient of ranks is that of their common batch
        losses = F.cross_entropy(
            logits,
            targets,
            weight=self.class_weights,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        true = targets if targets.ndim == 1 else targets.argmax(1)
        right = (logits.detach().argmax(1) == true).float().mean()
        return StepOutput(loss=losses.mean(), logs={"train_accuracy": right})

    def _checked(self, last_BCHW: Tensor) -> Tensor:
        if last_BCHW.shape[2:] != self.grid:
            raise UserError(
                f"this classifier flattens a map of {self.grid} positions and got one of "
                f"{tuple(last_BCHW.shape[2:])}: it takes images of the size that it was trained with"
            )
        return last_BCHW


@torch.no_grad()
def _last_grid(encoder: Encoder, size: int) -> torch.Size:
    """Height and width of the last map of square images."""
    was_training = encoder.training
    like = next(encoder.parameters())
    last_1CHW = encoder.eval()(like.new_zeros(1, encoder.in_channels, size, size))[-1]
    encoder.train(was_training)
    return last_1CHW.shape[2:]
