"""Networks that know something already, for others to learn from: one contract, whatever they were trained with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cluster import storage
from pretrain.encoders.base import Encoder, pooled
from pretrain.encoders.saving import load_encoder, read_encoder_config


class TeacherOutput(NamedTuple):
    """What a teacher says of images: features [B, D] of whole images, and its maps [B, C, H, W], finest first (may be none)."""

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


class _EncoderNetwork(nn.Module):
    """An encoder as a teacher: its maps, and the mean of the last one."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images_BCHW: Tensor) -> TeacherOutput:
        maps = self.encoder(images_BCHW)
        return TeacherOutput(pooled(maps), maps)


def open_teacher(name: str) -> Teacher:
    """The teacher of a name: the folder of a saved encoder.

    Raises UserError that says what was looked for and where when it cannot be loaded.
    """
    url = storage.absolute(name)
    config, encoder = read_encoder_config(url), load_encoder(url)
    return Teacher(
        network=_EncoderNetwork(encoder).eval().requires_grad_(False),
        name=name,
        dim=encoder.channels[-1],
        channels=encoder.channels,
        strides=encoder.strides,
        in_channels=encoder.in_channels,
        input_size=config.input_size or 224,
        mean=config.mean,
        std=config.std,
        dtype=torch.float32,
        weights_sha256=weights_fingerprint(encoder.state_dict()),
        licence=None,
    )


def weights_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of tensors with their names, types and shapes, hex."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update((flat.view(torch.uint8).numpy() if flat.numel() else np.zeros(0, np.uint8)).tobytes())
    return digest.hexdigest()
