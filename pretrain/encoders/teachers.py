"""Trained networks, for others to learn from: one contract, whatever they were trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cluster import storage
from pretrain.data.views.viewing import default_mean, default_std
from pretrain.encoders.base import Encoder, pooled
from pretrain.encoders.building import ENCODERS
from pretrain.encoders.fingerprints import weights_fingerprint
from pretrain.encoders.saving import licence_of, load_encoder, read_encoder_config
from pretrain.encoders.teaching import Teacher, TeacherOutput
from pretrain.encoders.timm_weights import TimmWeights, is_timm, read_timm, timm_encoder, whole_network
from pretrain.encoders.transformers_teachers import exported_encoder, is_transformers, transformers_teacher

__all__ = ["Teacher", "TeacherOutput", "open_teacher"]

DEFAULT_SIZE = 224


class _EncoderNetwork(nn.Module):
    """An encoder as a teacher: its maps, and the mean of the last one."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images_BCHW: Tensor) -> TeacherOutput:
        maps = self.encoder(images_BCHW)
        return TeacherOutput(pooled(maps), maps)


class TimmNetwork(nn.Module):
    """A timm network without its classifier: what its head sees, and the last map of each stride,
    in one pass.

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
                # one stride from end to end: a transformer,
                # whose last map is meant to be seen through its last norm
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
    """The teacher of a name.

        runs/first/encoder                a saved encoder, at any URL
        timm:NAME, timm:NAME@FILE, timm:local-dir:FOLDER, package:efficientnet_lite0    see `timm_weights`
        my/dinov2                         a folder of Hugging Face transformers, see `transformers_teachers`

    Raises UserError that says what was looked for and where when it cannot be loaded.
    """
    if is_timm(name):
        return _timm_teacher(read_timm(name))
    url = storage.absolute(name)
    if is_transformers(url):
        own = exported_encoder(url)
        return transformers_teacher(name) if own is None else _encoder_teacher(name, *own)
    config, encoder = read_encoder_config(url), load_encoder(url)
    return _encoder_teacher(
        name,
        encoder,
        {
            "input_size": [encoder.in_channels, config.input_size or DEFAULT_SIZE],
            "mean": config.mean,
            "std": config.std,
            "license": licence_of(url),
        },
    )


def _timm_teacher(weights: TimmWeights) -> Teacher:
    if weights.network in ENCODERS or weights.maps_only:
        # what a head would see was never trained, or is the mean of the last map anyway
        return _encoder_teacher(weights.name, *timm_encoder(weights))
    network = whole_network(weights)
    said: Any = network.pretrained_cfg
    wrapped = TimmNetwork(network, input_size=said["input_size"][-1], in_channels=said["input_size"][0])
    dtypes = [tensor.dtype for tensor in (weights.tensors or {}).values() if tensor.is_floating_point()]
    return Teacher(
        network=wrapped.eval().requires_grad_(False),
        name=weights.name,
        dim=wrapped.dim,
        channels=wrapped.channels,
        strides=wrapped.strides,
        in_channels=said["input_size"][0],
        input_size=said["input_size"][-1],
        mean=tuple(said["mean"]),
        std=tuple(said["std"]),
        dtype=dtypes[0] if dtypes else torch.float32,
        weights_sha256=weights_fingerprint(network.state_dict()),
        licence=weights.said.get("license") or said.get("license"),
    )


def _encoder_teacher(name: str, encoder: Encoder, said: Mapping[str, Any]) -> Teacher:
    channels, size = encoder.in_channels, (said.get("input_size") or [DEFAULT_SIZE])[-1]
    return Teacher(
        network=_EncoderNetwork(encoder).eval().requires_grad_(False),
        name=name,
        dim=encoder.channels[-1],
        channels=encoder.channels,
        strides=encoder.strides,
        in_channels=channels,
        input_size=size,
        mean=tuple(said.get("mean") or default_mean(channels)),
        std=tuple(said.get("std") or default_std(channels)),
        dtype=torch.float32,
        weights_sha256=weights_fingerprint(encoder.state_dict()),
        licence=said.get("license"),
    )
