"""VICReg: two views agree, each coordinate keeps its variance, and coordinates do not vary together.

Bardes et al., VICReg: Variance-Invariance-Covariance Regularization, https://arxiv.org/abs/2105.04906,
algorithm 1.
"""

from __future__ import annotations

from typing import cast

import torch
from lightly.loss import VICRegLoss
from lightly.loss.vicreg_loss import invariance_loss, variance_loss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor

from pretrain.encoders import Encoder
from pretrain.methods.base import Method
from pretrain.methods.contrast import off_diagonal
from pretrain.training.contract import StepOutput


class _Loss(VICRegLoss):
    """lightly's loss to the last bit, whose covariance leaves the diagonal out by a
    mask and waits for the device there.
    """

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        # in lightly's order, by which gradients are added up
        invariance = invariance_loss(z_a, z_b)
        variance = 0.5 * (variance_loss(z_a, eps=self.eps) + variance_loss(z_b, eps=self.eps))
        covariance = _covariance_loss(z_a) + _covariance_loss(z_b)
        loss = self.lambda_param * invariance + self.mu_param * variance + self.nu_param * covariance
        return cast(Tensor, loss)


def _covariance_loss(embeddings_BD: Tensor) -> Tensor:
    centred_BD = embeddings_BD - embeddings_BD.mean(0)
    covariance_DD = torch.einsum("bc,bd->cd", centred_BD, centred_BD) / (len(embeddings_BD) - 1)
    return off_diagonal(covariance_DD).pow(2).sum() / embeddings_BD.shape[1]


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
        self.criterion = _Loss(
            lambda_param=invariance_weight, mu_param=variance_weight, nu_param=covariance_weight
        )

    def forward(self, views: list[Tensor]) -> StepOutput:
        """Weighted sum of the three terms over the global batch, at least 0."""
        first, second = (self.projector(features) for features in self.features(views))
        return StepOutput(
            loss=self.criterion(self.ranks.global_batch(first), self.ranks.global_batch(second)),
            embeddings=(first.detach(), second.detach()),
        )
