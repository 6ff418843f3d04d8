"""Weighted k-nearest-neighbour accuracy: what an encoder knows, without training anything."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def knn_predict(
    bank_ND: Tensor,
    bank_labels_N: Tensor,
    queries_QD: Tensor,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Predicted class of each query, int64 [Q], by the vote of its k nearest
    neighbours weighted by exp(cosine / T).

    The protocol of Wu et al. (https://arxiv.org/abs/1805.01978, section 3.4), as DINO uses it.
    k is cut to the bank's size.
    """
    bank, k = F.normalize(bank_ND.float(), dim=1), min(k, len(bank_ND))
    predictions = []
    for chunk in F.normalize(queries_QD.float(), dim=1).split(1024):
        similarity, index = (chunk @ bank.T).topk(k)
        votes = torch.zeros(len(chunk), num_classes, device=chunk.device)
        votes.scatter_add_(1, bank_labels_N[index], (similarity / temperature).exp())
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


def knn_accuracy(
    bank_ND: Tensor,
    bank_labels_N: Tensor,
    queries_QD: Tensor,
    query_labels_Q: Tensor,
    *,
    num_classes: int,
    k: int = 20,
) -> float:
    """Fraction of queries in [0, 1] whose weighted neighbours vote for the right class."""
    predictions = knn_predict(bank_ND, bank_labels_N, queries_QD, num_classes=num_classes, k=k)
    return float((predictions == query_labels_Q).float().mean())
