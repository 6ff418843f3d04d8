"""Numbers that show whether an embedding is alive, without any label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def embedding_health(first_BD: Tensor, second_BD: Tensor) -> dict[str, float]:
    """Health of the embeddings of two views of the same images, B at least 2.

    - `spread`: mean standard deviation of the normalised embeddings' coordinates, times sqrt(D); 1 when they fill the sphere,
      0 when all are one point (SimSiam, https://arxiv.org/abs/2011.10566, section 4.1).
    - `effective_rank`: RankMe, exp of the entropy of the singular values' shares (https://arxiv.org/abs/2210.02885); from 1
      to min(B, D).
    - `alignment`: mean squared distance of the two views, 0 to 4, lower is closer; `uniformity`: log of the mean Gaussian
      potential of pairs, 0 when collapsed, lower is more even (https://arxiv.org/abs/2005.10242).
    """
    raw = first_BD.double()
    first, second = F.normalize(raw, dim=1), F.normalize(second_BD.double(), dim=1)
    spread = first.std(0).mean() * first.shape[1] ** 0.5
    shares = torch.linalg.svdvals(raw)
    shares = shares / shares.sum().clamp_min(1e-12) + 1e-12
    rank = torch.exp(-(shares * shares.log()).sum())
    alignment = (first - second).square().sum(1).mean()
    uniformity = torch.pdist(first).square().mul(-2).exp().mean().log()
    return {
        "spread": float(spread),
        "effective_rank": float(rank),
        "alignment": float(alignment),
        "uniformity": float(uniformity),
    }


def warnings_in_words(
    numbers: dict[str, float], *, batch_size: int, dim: int, loss: float, chance_loss: float | None, step: int
) -> list[str]:
    """What the numbers say is wrong, one line each: what is seen and what usually helps. Empty for a healthy run.

    Nothing is said about the first 100 steps: fresh networks map all images to nearly one point.
    """
    if step < 100:
        return []
    words = []
    spread, rank = numbers.get("spread", 1.0), numbers.get("effective_rank", float("inf"))
    if spread < 0.05 or rank < min(2.0, 0.1 * min(batch_size, dim)):
        words.append(
            f"collapse: all images get nearly the same embedding (spread {spread:.3f} of 1, effective rank {rank:.1f} "
            f"of {min(batch_size, dim)}); a lower learning rate, a longer warm-up or a larger batch usually helps"
        )
    if chance_loss is not None and loss > 0.99 * chance_loss:
        words.append(
            f"the loss {loss:.3f} stands at its chance value {chance_loss:.3f}: nothing is learnt; a lower learning rate "
            "or a milder crop usually helps"
        )
    return words
