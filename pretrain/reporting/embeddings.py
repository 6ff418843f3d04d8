"""Features of a sample: computed in bounded time, their nearest neighbours,
and a plane to lay them out on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from pretrain.data.views.augment import normalised
from pretrain.encoders import Encoder, pooled

BATCH = 16  # small, so that a deadline is kept by large encoders on a CPU too
MIN_FOR_PLANE, PERPLEXITY, MAX_DIMENSIONS, MAX_ITERATIONS = 12, 30.0, 50, 500
# One thread is enough for some hundred images,
# and on a busy machine many that wait for each other take a minute.


@torch.no_grad()
def features_of(
    encoder: Encoder, crops_NCSS: np.ndarray, *, mean: Sequence[float], std: Sequence[float], deadline: float
) -> np.ndarray:
    """Pooled features float32 [n, D] of the first n images,
    all of them if there is time until `deadline`.
    """
    device = next(encoder.parameters()).device
    features = []
    for start in range(0, len(crops_NCSS), BATCH):
        images = normalised(crops_NCSS[start : start + BATCH], device, mean, std)
        features.append(pooled(encoder(images)).float().cpu().numpy())
        if time.monotonic() > deadline:
            break
    return np.concatenate(features) if features else np.zeros((0, encoder.channels[-1]), np.float32)


def neighbours(features_ND: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest others of each image by cosine:
    their indices int64 [N, k] and similarities [N, k], nearest first.
    """
    unit = features_ND / np.maximum(np.linalg.norm(features_ND, axis=1, keepdims=True), 1e-12)
    similarity_NN = unit @ unit.T
    np.fill_diagonal(similarity_NN, -np.inf)
    k = min(k, len(features_ND) - 1)
    order_Nk = np.argsort(-similarity_NN, axis=1, kind="stable")[:, :k]
    return order_Nk, np.take_along_axis(similarity_NN, order_Nk, axis=1)


def plane(features_ND: np.ndarray) -> np.ndarray:
    """Positions [N, 2] in the unit square, near for images that are near:
    t-SNE of the leading principal components.

    t-SNE: van der Maaten and Hinton, https://www.jmlr.org/papers/v9/vandermaaten08a.html. The same features
    give the same positions. For fewer than twelve images it is the principal components themselves.
    """
    centred = features_ND - features_ND.mean(0)
    scale = float(np.abs(centred).max())
    components = principal_components(centred / scale if scale > 0 else centred, MAX_DIMENSIONS)
    if len(features_ND) < MIN_FOR_PLANE or not np.ptp(components) > 0:
        positions = np.pad(components, ((0, 0), (0, 2)))[:, :2]
    else:
        from sklearn.manifold import TSNE  # takes a second to import

        perplexity = min(PERPLEXITY, (len(features_ND) - 1) / 3)
        with threadpool_limits(1):
            positions = TSNE(
                perplexity=perplexity, init="pca", max_iter=MAX_ITERATIONS, random_state=0
            ).fit_transform(components)
    # by ranges that leave out the farthest: one stray image must not press all others together
    low, high = np.percentile(positions, [1, 99], axis=0)
    return np.clip((positions - low) / np.maximum(high - low, 1e-12), 0, 1)


def principal_components(centred_ND: np.ndarray, max_components: int) -> np.ndarray:
    """Coordinates along the axes of largest variance, [N, at most `max_components`]; signs are fixed by the
    largest coordinate.
    """
    with threadpool_limits(1):
        left, sizes, _ = np.linalg.svd(centred_ND.astype(np.float64), full_matrices=False)
    coordinates = (left * sizes)[:, :max_components]
    signs = np.sign(coordinates[np.abs(coordinates).argmax(0), np.arange(coordinates.shape[1])])
    turned: np.ndarray = coordinates * np.where(signs == 0, 1.0, signs)
    return turned.astype(np.float32)


def map_colours(map_BCHW: Tensor) -> np.ndarray:
    """float32 [B, H, W, 3] in [0, 1]: the three leading principal components of all positions' features,
    as red, green, blue.

    Positions of one colour have like features, in one image and over all of
    them (as DINOv2 shows its, 2304.07193).
    """
    batch, channels, height, width = map_BCHW.shape
    tokens = map_BCHW.permute(0, 2, 3, 1).reshape(-1, channels).float().cpu().numpy()
    components = principal_components(tokens - tokens.mean(0), 3)
    components = np.pad(components, ((0, 0), (0, 3 - components.shape[1])))
    low, high = np.percentile(components, [2, 98], axis=0)
    fractions: np.ndarray = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    return fractions.reshape(batch, height, width, 3).astype(np.float32)
