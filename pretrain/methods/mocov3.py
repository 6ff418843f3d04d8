"""MoCo v3: two views find each other among the global batch, one of them seen by a slowly moving encoder.

Chen et al., An Empirical Study of Training Self-Supervised Vision Transformers,
https://arxiv.org/abs/2104.02057, algorithm 1.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import MoCoProjectionHead
from torch import Tensor

from pretrain.encoders import Encoder
from pretrain.methods.base import Method, momentum_copy, move_towards, relative_distance, rising_momentum
from pretrain.training.contract import StepOutput


class MoCoV3(Method):
    """MoCo v3.

    Args:
        encoder: to be trained.
        temperature: of the softmax over similarities.
        momentum: of the key encoder at the start; it rises to 1.
        hidden_dim, projection_dim: of the projection and prediction heads.
    """

    recipe = "byol"
    num_views = 2

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: float = 0.2,
        momentum: float = 0.99,
        hidden_dim: int = 4096,
        projection_dim: int = 256,
    ) -> None:
        super().__init__(encoder)
        self.projector = MoCoProjectionHead(
            encoder.channels[-1], hidden_dim, projection_dim, num_layers=3, batch_norm=True
        )
        self.predictor = MoCoProjectionHead(
            projection_dim, hidden_dim, projection_dim, num_layers=2, batch_norm=True
        )
        self.key_encoder = cast(Encoder, momentum_copy(encoder))
        self.key_projector = momentum_copy(self.projector)
        self.temperature, self.momentum = temperature, momentum

    def forward(self, views: list[Tensor]) -> StepOutput:
        """Loss of both views against each other's keys. At chance it is 4 temperature log(B_global)."""
        queries = [self.predictor(self.projector(features)) for features in self.features(views)]
        with torch.no_grad():
            keys = [self.key_projector(features) for features in self.features(views, self.key_encoder)]
        num_keys = len(keys[0]) * self.ranks.world_size
        return StepOutput(
            loss=self._contrast(queries[0], keys[1]) + self._contrast(queries[1], keys[0]),
            embeddings=(queries[0].detach(), queries[1].detach()),
            chance_loss=4 * self.temperature * math.log(num_keys),
        )

    def _contrast(self, queries_BD: Tensor, keys_BD: Tensor) -> Tensor:
        keys = self.ranks.gathered(F.normalize(keys_BD, dim=1))
        logits = F.normalize(queries_BD, dim=1) @ keys.T / self.temperature
        own = torch.arange(len(logits), device=logits.device) + self.ranks.rank * len(logits)
        return 2 * self.temperature * F.cross_entropy(logits, own)

    def after_step(self, step: int, num_steps: int) -> None:
        """Moves the key encoder."""
        momentum = rising_momentum(self.momentum, step, num_steps)
        move_towards(self.key_encoder, self.encoder, momentum)
        move_towards(self.key_projector, self.projector, momentum)

    def health(self) -> dict[str, float]:
        """How far the key encoder is behind."""
        return {"teacher_distance": relative_distance(self.key_encoder, self.encoder)}
