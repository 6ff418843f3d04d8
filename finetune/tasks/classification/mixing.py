"""Mixup (Zhang et al., https://arxiv.org/abs/1710.09412) and CutMix (Yun et
al., https://arxiv.org/abs/1905.04899).

Neighbours in a batch make a pair, and each of the two takes the other's place in the other's mixture, so
both appear once. What is drawn belongs to the pair's first row in its pass over the data: as long as a
rank's batch is even, the mixtures do not depend on the number of ranks, and a resumed run sees the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from pretrain.data.hashing import uniform
from pretrain.training.feeding import uploaded

# domain separation from other draws of the same row
_MIXING = 0x6D6978


@dataclass(frozen=True)
class Mixing:
    """Which of both, with the parameter of their symmetric Beta distributions; 0 is off.
    With both, each pair takes one.
    """

    mixup: float
    cutmix: float
    seed: int

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def __call__(
        self, images_BCHW: Tensor, targets_BK: Tensor, *, passes: np.ndarray, row_ids: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Mixed images and targets; an odd last image stays as it is."""
        num_pairs = len(row_ids) // 2
        if not num_pairs:
            return images_BCHW, targets_BK
        height, width = images_BCHW.shape[2:]
        own_PHW = self.own_fractions(
            passes[: 2 * num_pairs : 2], row_ids[: 2 * num_pairs : 2], height, width
        )
        own = uploaded(own_PHW, images_BCHW.device).repeat_interleave(2, 0)[:, None]
        partner = torch.arange(2 * num_pairs, device=images_BCHW.device) ^ 1
        first, rest = images_BCHW[: 2 * num_pairs], images_BCHW[2 * num_pairs :]
        own_of_targets = own.mean((1, 2, 3))[:, None].to(targets_BK.dtype)
        told, others = targets_BK[: 2 * num_pairs], targets_BK[2 * num_pairs :]
        mixed = own * first + (1 - own) * first[partner]
        mixed_targets = own_of_targets * told + (1 - own_of_targets) * told[partner]
        return torch.cat([mixed.to(images_BCHW.dtype), rest]), torch.cat([mixed_targets, others])

    def own_fractions(self, passes: np.ndarray, row_ids: np.ndarray, height: int, width: int) -> np.ndarray:
        """float32 [pairs, height, width]: how much of each pixel is an image's own;
        the rest is its partner's.
        """
        draws = [uniform(_MIXING, self.seed, passes, row_ids, number) for number in range(4)]
        cuts = draws[0] < 0.5 if self.mixup and self.cutmix else np.full(len(row_ids), self.cutmix > 0)
        alpha = np.where(cuts, self.cutmix, self.mixup)
        fraction = betaincinv(alpha, alpha, draws[1])[:, None, None]
        # a box with 1 - fraction of the area around a random point, cut at the borders
        half = np.sqrt(1 - fraction) / 2
        rows, columns = np.arange(height)[None, :, None] + 0.5, np.arange(width)[None, None, :] + 0.5
        in_box = (np.abs(rows / height - draws[2][:, None, None]) < half) & (
            np.abs(columns / width - draws[3][:, None, None]) < half
        )
        return np.where(cuts[:, None, None], 1.0 - in_box, fraction).astype(np.float32)
