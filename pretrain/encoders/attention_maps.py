"""Where an encoder looks: attention as maps over the image, by layer and head,
and followed through all layers (rollout).

    maps = attention_maps(encoder, images_BCHW)      # {layer: [B, heads, H, W]}
    rolled_BHW = attention_rollout(encoder, images_BCHW)

The weights are recomputed from each layer's input (`Encoder.look`); their product with the values is what
the fused kernel gives. Each map is a distribution: what lies in a part of the image is the sum over that
part, and 1 / (H * W) a position is what attention without preference would give.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.errors import UserError, choose
from pretrain.encoders.base import Attention, Encoder

QUERIES = ("all", "class")


def attention_maps(encoder: Encoder, images_BCHW: Tensor, *, queries: str = "all") -> dict[str, Tensor]:
    """Attention that each position gets, [B, heads, H, W] by layer, summing to 1 over positions.

    Args:
        encoder: one without attention gives no maps.
        images_BCHW: normalised, on the encoder's device.
        queries: whose attention. `all` is the mean over all positions, as an image's features are the mean
            of the last map; `class` is that of the class token, which only ViTs have.

    Raises UserError where there is no class token.
    """
    choose("queries", queries, QUERIES)
    maps = {}
    with eval_mode(encoder):
        for name, layer in encoder.look(images_BCHW).items():
            maps[name] = _received(layer, _asking(name, layer, queries))
    return maps


def attention_rollout(
    encoder: Encoder, images_BCHW: Tensor, *, queries: str = "all", residual: float = 0.5
) -> Tensor | None:
    """Attention followed from the last layer back to the first one's positions, [B, H, W],
    summing to 1 over them.

    The layers' weights, averaged over heads and mixed with the identity for the residual path, are
    multiplied (Abnar and Zuidema, https://arxiv.org/abs/2005.00928). A key that is an average of positions
    hands its weight on to them evenly, and so does a position to those that a smaller map's was made of.
    What convolutions mix in between is left out.

    Args:
        residual: share of the identity, in [0, 1].

    Returns None for an encoder without attention.
    """
    choose("queries", queries, QUERIES)
    with eval_mode(encoder):
        layers = encoder.look(images_BCHW)
    if not layers:
        return None
    rolled_BQN: Tensor | None = None
    former: Attention | None = None
    for name, layer in layers.items():
        mixed_BQQ = (1 - residual) * _onto_positions(layer).mean(1)
        mixed_BQQ = mixed_BQQ + residual * torch.eye(mixed_BQQ.shape[-1], device=mixed_BQQ.device)
        if rolled_BQN is not None and former is not None and former.queries_HW != layer.queries_HW:
            rolled_BQN = (
                _block_means(former.queries_HW, _ratio(former.queries_HW, layer.queries_HW), mixed_BQQ)
                @ rolled_BQN
            )
        rolled_BQN = mixed_BQQ if rolled_BQN is None else mixed_BQQ @ rolled_BQN
        last, former = (name, layer), layer
    assert rolled_BQN is not None
    height, width = next(iter(layers.values())).queries_HW
    asked_BN = rolled_BQN[:, _asking(*last, queries)].mean(1)[:, -height * width :]
    return _as_fractions(asked_BN).unflatten(1, (height, width))


def _asking(name: str, layer: Attention, queries: str) -> slice:
    """The rows of the weights whose attention is asked for."""
    if queries == "all":
        return slice(layer.num_extra, None)
    if not layer.has_class:
        raise UserError(
            f"queries=class is not possible: {name} has no class token (queries=all always works)"
        )
    return slice(0, 1)


def _received(layer: Attention, asking: slice) -> Tensor:
    """[B, heads, H, W] on the map of queries: the mean over the rows `asking`,
    without what goes to extra tokens.
    """
    received_BhQ = _onto_positions(layer, asking)[:, :, :, layer.num_extra :].mean(2)
    return _as_fractions(received_BhQ).unflatten(2, layer.queries_HW)


def _onto_positions(layer: Attention, asking: slice = slice(None)) -> Tensor:
    """The weights [B, heads, rows, queries] on the positions that the keys are averages of."""
    weights_BhQK = layer.weights_BhQK[:, :, asking]
    if layer.key_stride == (1, 1):
        return weights_BhQK
    return weights_BhQK @ _block_means(layer.queries_HW, layer.key_stride, weights_BhQK)


def _block_means(size_HW: tuple[int, int], block: tuple[int, int], like: Tensor) -> Tensor:
    """The matrix [blocks, positions] that averages a map over blocks;
    what is left at the borders is a block too.
    """
    height, width = size_HW
    positions = torch.eye(height * width, device=like.device, dtype=like.dtype).view(-1, 1, height, width)
    return F.avg_pool2d(positions, block, ceil_mode=True, count_include_pad=False).flatten(1).T


def _ratio(finer_HW: tuple[int, int], coarser_HW: tuple[int, int]) -> tuple[int, int]:
    return -(-finer_HW[0] // coarser_HW[0]), -(-finer_HW[1] // coarser_HW[1])


def _as_fractions(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while: batch norms use their running statistics and keep them,
    drop path leaves nothing out.
    """
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
