"""SimCLR: two views of an image attract, all other images of the global batch repel.

Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, https://arxiv.org/abs/2002.05709.
Head and loss are lightly's; negatives are gathered over ranks, so loss and averaged gradient on many ranks equal those of one
process with the whole batch.
"""

from __future__ import annotations

import math

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import Tensor, nn

from pretrain.encoders import Encoder, pooled
from pretrain.training import distributed
from pretrain.training.loop import StepOutput


class SimCLR(nn.Module):
    """The method contract: views it wants, forward to a loss, and the encoder to export.

    Args:
        encoder: to be trained.
        temperature: of the softmax over similarities; 0.5 suits small batches, 0.1 large ones (paper, table 5).
        hidden_dim, projection_dim: of the projection head.
        num_layers: of the projection head, 2 in the paper, 3 in SimCLR v2 (https://arxiv.org/abs/2006.10029).
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
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = SimCLRProjectionHead(
            encoder.channels[-1], hidden_dim, projection_dim, num_layers=num_layers, batch_norm=True
        )
        self.criterion = NTXentLoss(temperature=temperature, gather_distributed=distributed.world_size() > 1)
        # lightly leaves the pointer of a memory bank of size 0 uninitialised, and it would go into every checkpoint
        self.criterion.memory_bank.bank_ptr.zero_()

    def forward(self, views: list[Tensor]) -> StepOutput:
        """Loss of two views, images_BCHW each, over the global batch. Its chance value is log(2 B_global - 1)."""
        batch_size = len(views[0])
        # one pass for both views: batch norm in the head sees both, as in the paper's implementation
        embeddings = self.projector(pooled(self.encoder(torch.cat(views))))
        # the softmax over similarities needs float32 at least
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        first, second = embeddings.split(batch_size)
        loss = self.criterion(first, second)
        return StepOutput(
            loss=loss,
            embeddings=(first.detach(), second.detach()),
            chance_loss=math.log(2 * batch_size * distributed.world_size() - 1),
        )
