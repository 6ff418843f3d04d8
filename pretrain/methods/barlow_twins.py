"""Barlow Twins: each coordinate of two views' embeddings agrees with itself and with no other.

Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction,
https://arxiv.org/abs/2103.03230, algorithm 1.
"""

from __future__ import annotations

from lightly.loss import BarlowTwinsLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from torch import Tensor

from pretrain.encoders import Encoder
from pretrain.methods.base import Method
from pretrain.training.contract import StepOutput


class BarlowTwins(Method):
    """Barlow Twins.

    Args:
        encoder: to be trained.
        redundancy_weight: lambda, of the terms off the diagonal.
        hidden_dim, projection_dim: of the projection head.
    """

    recipe = "byol"
    num_views = 2

    def __init__(
        self,
        encoder: Encoder,
        *,
        redundancy_weight: float = 5e-3,
        hidden_dim: int = 8192,
        projection_dim: int = 8192,
    ) -> None:
        super().__init__(encoder)
        self.projector = BarlowTwinsProjectionHead(encoder.channels[-1], hidden_dim, projection_dim)
        # lightly's option for ranks normalises each rank's embeddings by their own statistics
        self.criterion = BarlowTwinsLoss(lambda_param=redundancy_weight)

    def forward(self, views: list[Tensor]) -> StepOutput:
        """Loss of the cross-correlation matrix of two views over the global batch, at least 0."""
        first, second = (self.projector(features) for features in self.features(views))
        return StepOutput(
            loss=self.criterion(self.ranks.global_batch(first), self.ranks.global_batch(second)),
            embeddings=(first.detach(), second.detach()),
        )
