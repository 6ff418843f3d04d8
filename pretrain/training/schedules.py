"""Learning rates as pure functions of the step."""

from __future__ import annotations

import math

from cluster.errors import choose

SCALINGS = {
    # Goyal et al., https://arxiv.org/abs/1706.02677
    "linear": lambda batch_size: batch_size / 256,
    # SimCLR, appendix B.1: better for small batches and few epochs
    "sqrt": lambda batch_size: math.sqrt(batch_size),
    "none": lambda batch_size: 1.0,
}


def scaled_learning_rate(base: float, *, scaling: str, batch_size_global: int) -> float:
    """The peak learning rate of a global batch:
    `linear` (base * B / 256), `sqrt` (base * sqrt(B)) or `none`.
    """
    return base * SCALINGS[choose("learning rate scaling", scaling, SCALINGS)](batch_size_global)


def half_cosine(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at 1 and beyond, by half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def warmup_cosine(step: int, *, num_steps: int, num_warmup_steps: int, final_fraction: float = 0.0) -> float:
    """The fraction of the peak learning rate at a step:
    a linear rise, then half a cosine down to `final_fraction`.

    The rise ends at 1 on step `num_warmup_steps`, and its first step is above 0 so that no step is wasted.
    The last step (`num_steps` - 1) is the last before `final_fraction` would be reached.
    """
    if step < num_warmup_steps:
        return (step + 1) / (num_warmup_steps + 1)
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    return half_cosine(1.0, final_fraction, progress)
