"""MoCo v2: an image is told apart from a long queue of earlier images, as a slowly moving encoder saw them.

He et al., Momentum Contrast for Unsupervised Visual Representation Learning,
https://arxiv.org/abs/1911.05722; Chen et al., Improved Baselines with Momentum Contrastive Learning,
https://arxiv.org/abs/2003.04297. The paper shuffles batches over GPUs because its batch norms are local;
ours see the global batch, so there is nothing to shuffle.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from lightly.models.modules.heads import MoCoProjectionHead
from torch import Tensor

from pretrain.encoders import Encoder
from pretrain.methods.base import Method, momentum_copy, move_towards, relative_distance
from pretrain.methods.contrast import NTXent
from pretrain.training.contract import StepOutput
from pretrain.training.health import spread


class MoCo(Method):
    """MoCo v2.

    Args:
        encoder: to be trained.
        temperature: of the softmax over similarities.
        queue_size: keys that repel; fewer than the data set has images, or an image meets itself.
        momentum: of the key encoder.
        hidden_dim, projection_dim: of the projection head.
    """

    recipe = "moco_v2"
    num_views = 2

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: float = 0.2,
        queue_size: int = 65536,
        momentum: float = 0.999,
        hidden_dim: int = 2048,
        projection_dim: int = 128,
    ) -> None:
        super().__init__(encoder)
        self.projector = MoCoProjectionHead(encoder.channels[-1], hidden_dim, projection_dim)
        self.key_encoder = cast(Encoder, momentum_copy(encoder))
        self.key_projector = momentum_copy(self.projector)
        self.criterion = NTXent(
            temperature, queue=(queue_size, projection_dim), gather_distributed=self.ranks.world_size > 1
        )
        self.momentum, self.queue_size = momentum, queue_size

    def forward(self, views: list[Tensor]) -> StepOutput:
        """Loss of view 0 against view 1 and the queue, which then takes view 1 in.
        At chance it is log(queue_size + 1).
        """
        queries = self.projector(self.features(views[:1])[0])
        with torch.no_grad():
            keys = self.key_projector(self.features(views[1:], self.key_encoder)[0])
        return StepOutput(
            loss=self.criterion(queries, keys),
            embeddings=(queries.detach(), keys),
            chance_loss=math.log(self.queue_size + 1),
        )

    def after_step(self, step: int, num_steps: int) -> None:
        """Moves the key encoder."""
        move_towards(self.key_encoder, self.encoder, self.momentum)
        move_towards(self.key_projector, self.projector, self.momentum)

    def health(self) -> dict[str, float]:
        """How far the key encoder is behind, and how spread the queue is."""
        return {
            "teacher_distance": relative_distance(self.key_encoder, self.encoder),
            "queue_spread": spread(self.criterion.memory_bank.bank),
        }
