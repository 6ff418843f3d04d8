"""VICReg: two views agree, each coordinate keeps its variance, and coordinates do not vary together.

Bardes et al., VICReg: Variance-Invariance-Covariance Regularization, https://arxiv.org/abs/2105.04906, algorithm 1.
"""

from __future__ import annotations

from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor

from pretrain.encoders import Encoder
from pretrain.methods.base import Method
from pretrain.training.contract import StepOutput


class VICReg(Method):
    """VICReg.

    Args:
        encoder: to be trained.
        invariance_weight, variance_weight, covariance_weight: lambda, mu and nu.
        hidden_dim, projection_dim: of the projection head.
    """

    recipe = "vicreg"
    num_views = 2

    def __init__(
        self,
        encoder: Encoder,
        *,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        hidden_dim: int = 8192,
        projection_dim: int = 8192,
    ) -> None:
        super().__init__(encoder)
        self.projector = VICRegProjectionHead(encoder.channels[-1], hidden_dim, projection_dim)
        self.criterion = VICRegLoss(
            lambda_param=invariance_weight, mu_param=variance_weight, nu_param=covariance_weight
        )

    def forward(self, views: list[Tensor]) -> StepOutput:
        """Weighted sum of the three terms over the global batch, at least 0."""
        first, second = (self.projector(features) for features in self.features(views))
        return StepOutput(
            loss=self.criterion(self.ranks.global_batch(first), self.ranks.global_batch(second)),
            embeddings=(first.detach(), second.detach()),
        )
