"""The contract of teachers, whatever they were trained with; `teachers.open_teacher` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class TeacherOutput(NamedTuple):
    """A teacher's output: features [B, D] of whole images, and its maps [B, C, H, W],
    finest first (may be none).
    """

    pooled_BD: Tensor
    maps: list[Tensor]


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen network in eval mode, and how its images are made.

    Attributes:
        network: `network(images_BCHW) -> TeacherOutput` for normalised images.
        name: as it was asked for.
        dim: of its pooled features.
        channels, strides: of its maps, finest first; empty where it has none.
        in_channels: of its images.
        input_size: side of the images it was trained on, in pixels.
        mean, std: of its normalisation, one a channel, of values in [0, 1].
        dtype: of its weights, in which an accelerator computes; the CPU computes in float32.
        weights_sha256: of its weights with their names, hex.
        licence: as its files say, None where they say nothing.
    """

    network: nn.Module
    name: str
    dim: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    in_channels: int
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype
    weights_sha256: str
    licence: str | None

    def described(self) -> dict[str, Any]:
        """What a run or a file of features remembers of it, JSON."""
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "licence": self.licence,
            "dim": self.dim,
            "input_size": self.input_size,
        }
