"""LeJEPA: views agree with the mean of the global ones,
and embeddings are spread like an isotropic Gaussian.

Balestriero & LeCun, LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics,
https://arxiv.org/abs/2511.08544. No teacher, no stop-gradient, no schedules; one weight to choose.
"""

from __future__ import annotations

import torch
from lightly.loss.lejepa_loss import SIGReg, lejepa_invariance_loss
from lightly.models.modules.heads import LeJEPAProjectionHead
from torch import Tensor

from pretrain.encoders import Encoder
from pretrain.methods.base import Method
from pretrain.methods.host_numbers import HostNumber
from pretrain.training.contract import StepOutput
from pretrain.training.stepping import seed_draws


class LeJEPA(Method):
    """LeJEPA.

    Args:
        encoder: to be trained.
        gaussian_weight: lambda, of the distance to a Gaussian; agreement has 1 - lambda.
        num_directions: random directions of a step along which the distributions are compared.
        num_global_views: views, the first ones, whose mean all agree with.
        hidden_dim, projection_dim, num_layers: of the projection head.
    """

    recipe = "dino"
    num_views = None

    def __init__(
        self,
        encoder: Encoder,
        *,
        gaussian_weight: float = 0.05,
        num_directions: int = 1024,
        num_global_views: int = 2,
        hidden_dim: int = 2048,
        projection_dim: int = 64,
        num_layers: int = 3,
    ) -> None:
        super().__init__(encoder)
        self.projector = LeJEPAProjectionHead(encoder.channels[-1], hidden_dim, projection_dim, num_layers)
        self.gaussian = SIGReg(num_vectors=num_directions, gather_distributed=self.ranks.world_size > 1)
        self.gaussian_weight, self.num_global_views = gaussian_weight, num_global_views
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._num_steps = HostNumber(self, "steps", int)

    def forward(self, views: list[Tensor]) -> StepOutput:
        """Weighted sum of both terms over the global batch, at least 0."""
        projections_VBD = torch.stack([self.projector(features) for features in self.features(views)])
        # directions depend on the step alone, not on what else drew random numbers on a rank
        devices = [projections_VBD.device] if projections_VBD.is_cuda else []
        with torch.random.fork_rng(devices):
            seed_draws(self._num_steps.get())
            gaussian = self.gaussian(projections_VBD)
        invariance = lejepa_invariance_loss(
            all_proj=projections_VBD, global_proj=projections_VBD[: self.num_global_views]
        )
        return StepOutput(
            loss=self.gaussian_weight * gaussian + (1 - self.gaussian_weight) * invariance,
            embeddings=(projections_VBD[0].detach(), projections_VBD[1].detach()),
        )

    def after_step(self, step: int, num_steps: int) -> None:
        """Counts steps."""
        self._num_steps.set(step + 1)
