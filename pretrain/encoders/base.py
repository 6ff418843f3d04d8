"""The contract of every encoder."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """`forward(images_BCHW) -> [map_BCHW, ...]`, finest first.

    Attributes:
        channels, strides: of each map; strides are relative to the image.
        in_channels: of the images.
        spec: `{"name", "arguments"}`, enough for `build_encoder` to make it again.
        num_layers: layers for layer-wise learning-rate decay.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    in_channels: int
    spec: dict[str, Any]
    num_layers: int

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """Maps of the images, which are normalised and of any size."""
        raise NotImplementedError

    def layer_of(self, parameter_name: str) -> int:
        """The layer a parameter belongs to: 0 for the stem up to `num_layers` - 1 for the last block."""
        raise NotImplementedError

    def attention_layers(self) -> dict[str, nn.Module]:
        """The attention modules by name; empty for an encoder without attention."""
        return {}

    def attention_weights(self, layer: Any, inputs: tuple[Tensor, ...]) -> Tensor:
        """The weights [B, heads, queries, keys] of one of `attention_layers` on its inputs."""
        weights: Tensor = layer.attention_weights(*inputs)
        return weights

    @torch.no_grad()
    def attention(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Attention weights of each attention layer, [B, heads, queries, keys] by its name, recomputed for the asking."""
        weights: dict[str, Tensor] = {}

        def recompute(name: str) -> Any:
            def hook(layer: Any, inputs: tuple[Tensor, ...]) -> None:
                weights[name] = self.attention_weights(layer, inputs)

            return hook

        hooks = [layer.register_forward_pre_hook(recompute(name)) for name, layer in self.attention_layers().items()]
        try:
            self(images_BCHW)
        finally:
            for hook in hooks:
                hook.remove()
        return weights


def keyword_arguments(encoder: type[Encoder], local_names: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments that a constructor was called with, of all its `locals()`: what `spec` must hold."""
    parameters = inspect.signature(encoder).parameters.values()
    return {p.name: local_names[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


def pooled(maps: list[Tensor]) -> Tensor:
    """Mean of the last map over positions, [B, channels[-1]]: the features of an image."""
    return maps[-1].mean((2, 3))
