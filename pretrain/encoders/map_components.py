"""A teacher's last map reduced to few channels, so that it can be stored for each image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.data.reading.feature_statistics import Moments, principal, tensors_in


@dataclass(frozen=True, eq=False)
class MapComponents:
    """Principal components of the positions of a map.

    Stored maps are `(map - mean) @ components / scale`: the numbers of all channels together have a
    deviation of 1, those of channel k one of `deviations[k] / scale`.

    Attributes:
        mean_C: float32, of the teacher's channels.
        components_CK: float32, orthonormal columns, the one with the largest variance first.
        deviations_K: float32, along them.
        scale: of what is stored.
        explained: fraction of the maps' variance that the components keep.
    """

    mean_C: np.ndarray
    components_CK: np.ndarray
    deviations_K: np.ndarray
    scale: float
    explained: float

    @property
    def channels(self) -> int:
        """K."""
        return self.components_CK.shape[1]

    def to_bytes(self) -> bytes:
        """As safetensors: `mean`, `components`, `deviations`, `scale`, `explained`."""
        return safetensors.numpy.save(
            {
                "mean": self.mean_C,
                "components": self.components_CK,
                "deviations": self.deviations_K,
                "scale": np.array([self.scale]),
                "explained": np.array([self.explained]),
            }
        )

    @classmethod
    def from_bytes(cls, content: bytes, url: str) -> MapComponents:
        """What `to_bytes` made. Raises UserError that names `url` when it is damaged."""
        tensors = tensors_in(content, url)
        return cls(
            tensors["mean"],
            tensors["components"],
            tensors["deviations"],
            float(tensors["scale"][0]),
            float(tensors["explained"][0]),
        )

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def reduce(self, maps_BCHW: Tensor) -> Tensor:
        """Maps [B, C, H, W] -> float32 [B, K, H, W] as they are stored."""
        mean_C, components_CK = (
            torch.from_numpy(array).to(maps_BCHW.device) for array in (self.mean_C, self.components_CK)
        )
        positions_BHWC = maps_BCHW.float().permute(0, 2, 3, 1) - mean_C
        return (positions_BHWC @ components_CK / self.scale).permute(0, 3, 1, 2)


def at_cells(maps_BCHW: Tensor, cells: int) -> Tensor:
    """Maps resampled to [B, C, cells, cells] by averaging over the positions of each cell."""
    return F.adaptive_avg_pool2d(maps_BCHW.float(), cells)


def fit_components(maps: Iterable[Tensor], *, num: int) -> MapComponents | None:
    """The components of maps [B, C, H, W] that come in pieces; None where none came."""
    moments: Moments | None = None
    for maps_BCHW in maps:
        vectors = maps_BCHW.float().cpu().permute(0, 2, 3, 1).reshape(-1, maps_BCHW.shape[1]).numpy()
        moments = moments or Moments(maps_BCHW.shape[1])
        moments.add(vectors)
    if moments is None or not moments.num:
        return None
    mean_C, covariance_CC = moments.mean_and_covariance()
    vectors_CK, values_K = principal(covariance_CC, num)
    scale = float(np.sqrt(values_K.mean()))
    return MapComponents(
        mean_C=mean_C.astype(np.float32),
        components_CK=np.ascontiguousarray(vectors_CK, np.float32),
        deviations_K=np.sqrt(values_K).astype(np.float32),
        scale=scale if scale > 0 else 1.0,
        explained=float(values_K.sum() / max(covariance_CC.trace(), 1e-30)),
    )
