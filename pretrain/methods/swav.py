"""SwAV: one view's assignment to prototypes is predicted from the others.

Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments,
https://arxiv.org/abs/2006.09882. Assignments are balanced over the global batch and, for small batches,
a queue of earlier ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from lightly.loss.swav_loss import SwaVLoss, sinkhorn
from lightly.models.modules.heads import SwaVProjectionHead, SwaVPrototypes
from torch import Tensor

from pretrain.encoders import Encoder
from pretrain.methods.base import Method
from pretrain.methods.host_numbers import HostNumber
from pretrain.training.contract import StepOutput
from pretrain.training.health import assignment_information, outputs_in_use


class SwAV(Method):
    """SwAV.

    Args:
        encoder: to be trained.
        num_prototypes: about ten times the classes one may expect.
        temperature: of the predictions.
        epsilon, sinkhorn_iterations: sharpness of the assignments, and how well they are balanced.
        queue_size: earlier images that assignments are balanced over too; 0 for batches of some hundred and
            more.
        queue_from, frozen_until: fractions of the run at which the queue starts and the prototypes are let
            go.
        num_global_views: views, the first ones, that are assigned to prototypes.
        hidden_dim, projection_dim: of the projection head.
    """

    recipe = "swav"
    num_views = None

    def __init__(
        self,
        encoder: Encoder,
        *,
        num_prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        queue_size: int = 0,
        queue_from: float = 0.05,
        frozen_until: float = 0.01,
        num_global_views: int = 2,
        hidden_dim: int = 2048,
        projection_dim: int = 128,
    ) -> None:
        super().__init__(encoder)
        self.projector = SwaVProjectionHead(encoder.channels[-1], hidden_dim, projection_dim)
        self.prototypes = SwaVPrototypes(projection_dim, num_prototypes)
        for head in self.prototypes.heads:
            head.register_parameter("bias", None)  # prototypes are directions; lightly's layers have one
        self.prototypes.normalize()
        self.criterion = SwaVLoss(temperature=temperature)
        self.queue_VKD: Tensor
        self.share: Tensor
        self.register_buffer("queue_VKD", torch.zeros(num_global_views, queue_size, projection_dim))
        self.register_buffer("share", torch.zeros((), dtype=torch.float64))
        self._fraction = HostNumber(self, "share")
        self._num_queued = HostNumber(self, "queue_VKD", _num_queued)
        self.epsilon, self.sinkhorn_iterations = epsilon, sinkhorn_iterations
        self.queue_from, self.frozen_until = queue_from, frozen_until
        self.num_global_views, self.num_prototypes = num_global_views, num_prototypes

    def forward(self, views: list[Tensor]) -> StepOutput:
        """Mean cross-entropy of assignments and predictions over pairs of views.
        At chance it is log(num_prototypes).
        """
        embeddings = [F.normalize(self.projector(features), dim=1) for features in self.features(views)]
        # gradients of zero rather than none, so that one rank and many do the same
        weight = self.prototypes.heads[0].weight
        weight = weight.detach() + 0 * weight if self._fraction.get() < self.frozen_until else weight
        scores = [F.linear(embedding, weight) for embedding in embeddings]
        codes = self._codes(
            [embedding.detach() for embedding in embeddings[: self.num_global_views]], weight.detach()
        )
        losses = [
            self.criterion.subloss(score, code)
            for assigned, code in enumerate(codes)
            for view, score in enumerate(scores)
            if view != assigned
        ]
        first, second = embeddings[:2]
        return StepOutput(
            loss=torch.stack(losses).mean(),
            logs={
                "assignment_information": assignment_information(codes[0]),
                "outputs_in_use": outputs_in_use(codes[0]),
            },
            embeddings=(first.detach(), second.detach()),
            chance_loss=math.log(self.num_prototypes),
        )

    @torch.no_grad()
    def _codes(self, embeddings_BD: Sequence[Tensor], prototypes_PD: Tensor) -> list[Tensor]:
        """Assignments of this rank's rows, balanced over those of all ranks and the queue."""
        codes = []
        size, num_queued = self.queue_VKD.shape[1], self._num_queued.get()
        # a queue that is not full yet has zeros at its end
        uses_queue = 0 < size == num_queued and self._fraction.get() >= self.queue_from
        for view, embedding in enumerate(embeddings_BD):
            everywhere, rows, rank = self.ranks.gathered(embedding), len(embedding), self.ranks.rank
            queue = self.queue_VKD[view]
            known = torch.cat([everywhere, queue]) if uses_queue else everywhere
            code = sinkhorn(
                known @ prototypes_PD.T, iterations=self.sinkhorn_iterations, epsilon=self.epsilon
            )
            codes.append(code[rank * rows : (rank + 1) * rows])
            if size:
                self.queue_VKD[view] = torch.cat([everywhere, queue])[:size]
        self._num_queued.follow(min(size, num_queued + len(everywhere)))
        return codes

    def after_step(self, step: int, num_steps: int) -> None:
        """Brings the prototypes back to the unit sphere."""
        self.prototypes.normalize()
        self._fraction.set((step + 1) / max(1, num_steps))


def _num_queued(queue_VKD: Tensor) -> int:
    """Embeddings in the queue of each view; they come first, and zeros follow."""
    return int(queue_VKD[0].any(1).sum()) if queue_VKD.numel() else 0
