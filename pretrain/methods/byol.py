"""BYOL: predict how a slowly moving encoder sees the other view; nothing repels.

Grill et al., Bootstrap Your Own Latent, https://arxiv.org/abs/2006.07733.
"""

from __future__ import annotations

from typing import cast

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
from torch import Tensor

from pretrain.encoders import Encoder
from pretrain.methods.base import Method, momentum_copy, move_towards, relative_distance, rising_momentum
from pretrain.training.contract import StepOutput


class BYOL(Method):
    """BYOL.

    Args:
        encoder: to be trained.
        momentum: of the target encoder at the start; it rises to 1.
        hidden_dim, projection_dim: of the projection and prediction heads.
    """

    recipe = "byol"
    num_views = 2

    def __init__(
        self, encoder: Encoder, *, momentum: float = 0.996, hidden_dim: int = 4096, projection_dim: int = 256
    ) -> None:
        super().__init__(encoder)
        self.projector = BYOLProjectionHead(encoder.channels[-1], hidden_dim, projection_dim)
        self.predictor = BYOLPredictionHead(projection_dim, hidden_dim, projection_dim)
        self.target_encoder = cast(Encoder, momentum_copy(encoder))
        self.target_projector = momentum_copy(self.projector)
        self.criterion = NegativeCosineSimilarity()
        self.momentum = momentum

    def forward(self, views: list[Tensor]) -> StepOutput:
        """Squared distance of normalised predictions and targets, both ways (equation 2): from 0 to 8."""
        projections = [self.projector(features) for features in self.features(views)]
        predictions = [self.predictor(projection) for projection in projections]
        with torch.no_grad():
            targets = [
                self.target_projector(features) for features in self.features(views, self.target_encoder)
            ]
        similarity = self.criterion(predictions[0], targets[1]) + self.criterion(predictions[1], targets[0])
        return StepOutput(
            loss=4 + 2 * similarity, embeddings=(projections[0].detach(), projections[1].detach())
        )

    def after_step(self, step: int, num_steps: int) -> None:
        """Moves the target encoder."""
        momentum = rising_momentum(self.momentum, step, num_steps)
        move_towards(self.target_encoder, self.encoder, momentum)
        move_towards(self.target_projector, self.projector, momentum)

    def health(self) -> dict[str, float]:
        """How far the target encoder is behind."""
        return {"teacher_distance": relative_distance(self.target_encoder, self.encoder)}
