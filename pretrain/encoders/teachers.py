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
from pretrain.encoders.package_weights import package_network
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


class TimmNetwork(nn.Module):
    """A timm network without its classifier: what its head sees, and the last map of each stride, in one pass.

    Args:
        network: built with `num_classes=0`.
        input_size: side of an image that it takes, in pixels.
        in_channels: of its images.
    """

    def __init__(self, network: nn.Module, *, input_size: int, in_channels: int) -> None:
        super().__init__()
        self.network = network.eval()
        self.strides: tuple[int, ...] = ()
        self._indices: list[int] = []
        self._norm = False
        images = torch.zeros(1, in_channels, input_size, input_size)
        with torch.no_grad():
            if hasattr(network, "forward_intermediates"):
                timms: Any = network
                maps = timms.forward_intermediates(images, intermediates_only=True)
                last = {round(input_size / m.shape[2]): index for index, m in enumerate(maps)}
                self.strides, self._indices = tuple(last), list(last.values())
                # one stride from end to end: a transformer, whose last map is meant to be seen through its last norm
                self._norm = len(last) == 1
            output = self(images)
        self.dim = output.pooled_BD.shape[1]
        self.channels = tuple(m.shape[1] for m in output.maps)

    def forward(self, images_BCHW: Tensor) -> TeacherOutput:
        """Features [B, dim], before the classifier, and maps."""
        network: Any = self.network
        maps: list[Tensor] = []
        if self._indices:
            final, maps = network.forward_intermediates(images_BCHW, indices=self._indices, norm=self._norm)
        else:
            final = network.forward_features(images_BCHW)
        return TeacherOutput(network.forward_head(final, pre_logits=True), maps)


def open_teacher(name: str) -> Teacher:
    """The teacher of a name: the folder of a saved encoder, or weights in an installed package (`package:efficientnet_lite0`).

    Raises UserError that says what was looked for and where when it cannot be loaded.
    """
    if name.startswith("package:"):
        return _timm_teacher(name, *package_network(name.removeprefix("package:")))
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


def _timm_teacher(name: str, network: nn.Module, licence: str | None) -> Teacher:
    said: Any = network.pretrained_cfg
    in_channels, size = said["input_size"][0], said["input_size"][-1]
    wrapped = TimmNetwork(network, input_size=size, in_channels=in_channels)
    return Teacher(
        network=wrapped.eval().requires_grad_(False),
        name=name,
        dim=wrapped.dim,
        channels=wrapped.channels,
        strides=wrapped.strides,
        in_channels=in_channels,
        input_size=size,
        mean=tuple(said["mean"]),
        std=tuple(said["std"]),
        dtype=next(network.parameters()).dtype,
        weights_sha256=weights_fingerprint(network.state_dict()),
        licence=licence,
    )


def weights_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of tensors with their names, types and shapes, hex."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update((flat.view(torch.uint8).numpy() if flat.numel() else np.zeros(0, np.uint8)).tobytes())
    return digest.hexdigest()
