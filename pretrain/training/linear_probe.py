"""Linear probe on cached features: logistic regression,
the usual measure of what frozen features say about labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# penalties on the squared norm of the weights, of standardised features;
# from all but free to all but constant
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
HELD_OUT = 5  # one of so many training rows chooses the penalty


def linear_accuracy(
    train_ND: Tensor, train_labels_N: Tensor, test_QD: Tensor, test_labels_Q: Tensor, *, num_classes: int
) -> float:
    """Fraction of test rows in [0, 1] that a logistic regression on the training rows classifies rightly.

    Features are standardised by the training rows. The penalty is the one that does best on every fifth
    training row, held out; the test rows choose nothing.
    The same numbers give the same result: all is full-batch L-BFGS from zero.
    """
    mean, deviation = train_ND.mean(0), train_ND.std(0).clamp_min(1e-6)
    train, test = (train_ND - mean) / deviation, (test_QD - mean) / deviation
    held_out = torch.arange(len(train), device=train.device) % HELD_OUT == 0
    # data often lie sorted by class; a fixed shuffle holds out some of each
    shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).to(train.device)
    fit, choose = shuffled[~held_out], shuffled[held_out]
    scores = [
        _accuracy(
            _fitted(train[fit], train_labels_N[fit], num_classes, s), train[choose], train_labels_N[choose]
        )
        for s in STRENGTHS
    ]
    best = max(zip(scores, STRENGTHS, strict=True))[1]  # of equals, the stronger penalty
    return _accuracy(_fitted(train, train_labels_N, num_classes, best), test, test_labels_Q)


def _fitted(features_ND: Tensor, labels_N: Tensor, num_classes: int, strength: float) -> Tensor:
    """Weights [D + 1, C], the last row the bias."""
    weights = torch.zeros(
        features_ND.shape[1] + 1, num_classes, device=features_ND.device, requires_grad=True
    )
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=200, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        logits = torch.addmm(weights[-1], features_ND, weights[:-1])
        loss = F.cross_entropy(logits, labels_N) + strength * weights[:-1].square().sum()
        loss.backward()
        return float(loss.detach())

    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach()


def _accuracy(weights: Tensor, features_ND: Tensor, labels_N: Tensor) -> float:
    predictions = torch.addmm(weights[-1], features_ND, weights[:-1]).argmax(1)
    return float((predictions == labels_N).float().mean())
