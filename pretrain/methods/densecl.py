"""DenseCL: MoCo v2 for whole images and, beside it, for each position in them; made for detection.

Wang et al., Dense Contrastive Learning for Self-Supervised Visual Pre-Training,
https://arxiv.org/abs/2011.09157. A position of one view corresponds to the position of the other view
whose encoder features are most alike.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import DenseCLProjectionHead
from lightly.models.utils import select_most_similar
from torch import Tensor

from pretrain.encoders import Encoder
from pretrain.methods.base import Method, momentum_copy, move_towards, relative_distance
from pretrain.methods.contrast import NTXent
from pretrain.training.contract import StepOutput
from pretrain.training.health import spread


class DenseCL(Method):
    """DenseCL.

    Args:
        encoder: to be trained.
        dense_weight: of the loss of positions, lambda; the loss of whole images has 1 - lambda.
        temperature: of the softmax over similarities.
        queue_size: keys that repel, of whole images and of positions.
        momentum: of the key encoder.
        hidden_dim, projection_dim: of the projection heads.
    """

    recipe = "densecl"
    num_views = 2

    def __init__(
        self,
        encoder: Encoder,
        *,
        dense_weight: float = 0.5,
        temperature: float = 0.2,
        queue_size: int = 65536,
        momentum: float = 0.999,
        hidden_dim: int = 2048,
        projection_dim: int = 128,
    ) -> None:
        super().__init__(encoder)
        self.projector = DenseCLProjectionHead(encoder.channels[-1], hidden_dim, projection_dim)
        self.dense_projector = DenseCLProjectionHead(encoder.channels[-1], hidden_dim, projection_dim)
        self.key_encoder = cast(Encoder, momentum_copy(encoder))
        self.key_projector = momentum_copy(self.projector)
        self.key_dense_projector = momentum_copy(self.dense_projector)
        self.criterion, self.dense_criterion = (
            NTXent(
                temperature, queue=(queue_size, projection_dim), gather_distributed=self.ranks.world_size > 1
            )
            for _ in range(2)
        )
        self.dense_weight, self.momentum, self.queue_size = dense_weight, momentum, queue_size

    def forward(self, views: list[Tensor]) -> StepOutput:
        """Loss of whole images and of their positions. At chance it is log(queue_size + 1)."""
        query_BNC = self.maps(views[:1])[0].flatten(2).mT
        query, dense_query = self.projector(query_BNC.mean(1)), self.dense_projector(query_BNC)
        with torch.no_grad():
            key_BNC = self.maps(views[1:], self.key_encoder)[0].flatten(2).mT
            key, dense_key = self.key_projector(key_BNC.mean(1)), self.key_dense_projector(key_BNC)
            # queries' positions look for theirs among the keys' by what both encoders see
            matched = select_most_similar(query_BNC, key_BNC, dense_key)
        dense_loss = self._dense_loss(dense_query, matched, dense_key)
        loss = (1 - self.dense_weight) * self.criterion(query, key) + self.dense_weight * dense_loss
        return StepOutput(
            loss=loss, embeddings=(query.detach(), key), chance_loss=math.log(self.queue_size + 1)
        )

    def _dense_loss(self, query_BND: Tensor, matched_BND: Tensor, key_BND: Tensor) -> Tensor:
        """Queries against their positions' keys and the queue, which takes in the mean key of each image."""
        query, positive = F.normalize(query_BND, dim=-1), F.normalize(matched_BND, dim=-1)
        keys_BD = F.normalize(key_BND.mean(1), dim=-1)
        negatives_DK = self.dense_criterion.negatives(keys_BD, update=query.requires_grad)
        logits = torch.cat([(query * positive).sum(-1, keepdim=True), query @ negatives_DK], dim=-1)
        own = torch.zeros(logits.shape[:-1].numel(), dtype=torch.long, device=logits.device)
        return F.cross_entropy(logits.flatten(0, 1) / self.dense_criterion.temperature, own)

    def after_step(self, step: int, num_steps: int) -> None:
        """Moves the key encoder."""
        move_towards(self.key_encoder, self.encoder, self.momentum)
        move_towards(self.key_projector, self.projector, self.momentum)
        move_towards(self.key_dense_projector, self.dense_projector, self.momentum)

    def health(self) -> dict[str, float]:
        """How far the key encoder is behind, and how spread the queue is."""
        return {
            "teacher_distance": relative_distance(self.key_encoder, self.encoder),
            "queue_spread": spread(self.criterion.memory_bank.bank),
        }
