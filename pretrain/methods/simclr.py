"""SimCLR: two views of an image attract, all other images of the global batch repel.

Chen et al., A Simple Framework for Contrastive Learning of Visual Representations,
https://arxiv.org/abs/2002.05709. Negatives are gathered over ranks.
"""

from __future__ import annotations

import math

import torch
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import Tensor, nn

from pretrain.encoders import Encoder
from pretrain.methods.base import Method
from pretrain.methods.contrast import DecoupledNTXent, NTXent
from pretrain.training.contract import StepOutput


class SimCLR(Method):
    """SimCLR.

    Args:
        encoder: to be trained.
        temperature: of the softmax over similarities; 0.5 suits small batches, 0.1 large ones (paper, table
            5).
        hidden_dim, projection_dim: of the projection head.
        num_layers: of the projection head, 2 in the paper, 3 in SimCLR v2
            (https://arxiv.org/abs/2006.10029).
        decoupled: leave the positive pair out of the denominator, which small batches gain from: Yeh et al.,
            Decoupled Contrastive Learning, https://arxiv.org/abs/2110.06848.
    """

    recipe = "simclr"
    num_views = 2

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: float = 0.1,
        hidden_dim: int = 2048,
        projection_dim: int = 128,
        num_layers: int = 2,
        decoupled: bool = False,
    ) -> None:
        super().__init__(encoder)
        self.projector = SimCLRProjectionHead(
            encoder.channels[-1], hidden_dim, projection_dim, num_layers=num_layers, batch_norm=True
        )
        # these losses compute a rank's rows only, against the columns of all ranks
        gather = self.ranks.world_size > 1
        loss = DecoupledNTXent if decoupled else NTXent
        self.criterion: nn.Module = loss(temperature, gather_distributed=gather)
        self._num_others = 2 if decoupled else 1

    def forward(self, views: list[Tensor]) -> StepOutput:
        """Loss of two views of the global batch; at chance log(2 B_global - 1), or - 2 when decoupled."""
        # one pass for both views: batch norm in the head sees both, as in the paper's implementation
        first, second = self.projector(torch.cat(self.features(views))).chunk(2)
        return StepOutput(
            loss=self.criterion(first, second),
            embeddings=(first.detach(), second.detach()),
            chance_loss=math.log(2 * len(first) * self.ranks.world_size - self._num_others),
        )
