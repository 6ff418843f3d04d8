"""lightly's contrastive losses and its queue of earlier keys, without waits for the device.

lightly's leave an image's own column out by a mask of bools, whose entries must be counted before the result
has a size, and read the position in the queue from the device: either keeps the host waiting in every step.
The losses here are equal to theirs to the last bit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.loss import DCLLoss, NTXentLoss
from torch import Tensor

from pretrain.methods.host_numbers import HostNumber
from pretrain.training.distributed import ALONE, Ranks, all_ranks


def without_own(similarities_BN: Tensor, first: int = 0) -> Tensor:
    """[B, N - 1]: each row without one column, which is `first` in row 0 and one
    further in each row that follows.
    """
    rows = len(similarities_BN)
    own = similarities_BN[:, first : first + rows].reshape(-1)
    # without its first entry, rows of one more entry end in what is to be left out
    others = own[1:].view(rows - 1, rows + 1)[:, :-1].reshape(rows, rows - 1)
    return torch.cat([similarities_BN[:, :first], others, similarities_BN[:, first + rows :]], dim=1)


class NTXent(NTXentLoss):
    """lightly's `NTXentLoss`: against the other images of the global batch, or with a queue against that."""

    def __init__(
        self, temperature: float, *, queue: tuple[int, int] | None = None, gather_distributed: bool
    ) -> None:
        """`queue` is (keys, dimensions); it is part of the state, which it is not in lightly's."""
        super().__init__(temperature, memory_bank_size=queue or 0, gather_distributed=gather_distributed)
        bank = self.memory_bank
        if queue is None:
            # lightly leaves the pointer of a memory bank of size 0 uninitialised
            bank.bank_ptr.zero_()
        else:
            bank._non_persistent_buffers_set.clear()
        self._position = HostNumber(bank, "bank_ptr", int)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss of embeddings [B, D] of two views;
        with a queue, of the first against the second and the queue.
        """
        first, second = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
        if self.memory_bank.size[0]:
            return self._against_queue(first, second)
        ranks = self._ranks
        everywhere = [ranks.global_batch(part) for part in (first, second)]
        start, batch = ranks.rank * len(first), len(first)
        to_first, to_second = (
            [torch.einsum("nc,mc->nm", part, whole) / self.temperature for whole in everywhere]
            for part in (first, second)
        )
        logits = torch.cat(
            [
                torch.cat([to_first[1], without_own(to_first[0], start)], dim=1),
                torch.cat([to_second[0], without_own(to_second[1], start)], dim=1),
            ]
        )
        own = torch.arange(start, start + batch, device=logits.device).repeat(2)
        return F.cross_entropy(logits, own)

    def _against_queue(self, first: Tensor, second: Tensor) -> Tensor:
        negatives_DK = self.negatives(second, update=first.requires_grad)
        own_N1 = torch.einsum("nc,nc->n", first, second).unsqueeze(-1)
        others_NK = torch.einsum("nc,ck->nk", first, negatives_DK)
        logits = torch.cat([own_N1, others_NK], dim=1) / self.temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), device=logits.device, dtype=torch.long))

    def negatives(self, keys_BD: Tensor, *, update: bool) -> Tensor:
        """The queue [D, K] as it was; with `update` it takes in the keys of
        all ranks in place of its oldest.
        """
        bank = self.memory_bank
        negatives = bank.bank.clone().transpose(0, 1)
        if update:
            new = self._ranks.gathered(keys_BD.detach())
            start, size = self._position.get(), len(bank.bank)
            end = start + len(new)
            bank.bank[start:end] = new[: size - start]
            self._position.set(0 if end >= size else end)
        return negatives

    @property
    def _ranks(self) -> Ranks:
        return all_ranks() if self.gather_distributed else ALONE


class DecoupledNTXent(DCLLoss):
    """lightly's `DCLLoss`, without weights of the positives."""

    def _loss(self, out0: Tensor, out1: Tensor, out0_all: Tensor, out1_all: Tensor) -> Tensor:
        start = (all_ranks() if self.gather_distributed else ALONE).rank * len(out0)
        to_first = torch.einsum("nc,mc->nm", out0, out0_all) / self.temperature
        to_second = torch.einsum("nc,mc->nm", out0, out1_all) / self.temperature
        negatives = torch.cat([without_own(to_first, start), without_own(to_second, start)], dim=1)
        return (torch.logsumexp(negatives, dim=1) - to_second.diagonal(start)).mean()


def off_diagonal(matrix_DD: Tensor) -> Tensor:
    """The entries [D * (D - 1)] beside the diagonal, row by row."""
    return without_own(matrix_DD).flatten()
