"""The contract of every encoder."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Attention:
    """What an attention layer looked at.

    Attributes:
        weights_BhQK: softmax(Q K^T / sqrt(d)), rows sum to 1. Queries and keys count the extra tokens first,
            then the positions of a map row by row.
        queries_HW: height and width of the map of queries.
        key_stride: a key is the average of a block of queries' positions of this side (at the last row and
            column of what is left of it).
        num_extra: tokens that are no position: class token, registers.
        has_class: the first of them is a class token.
    """

    weights_BhQK: Tensor
    queries_HW: tuple[int, int]
    key_stride: tuple[int, int] = (1, 1)
    num_extra: int = 0
    has_class: bool = False


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

    def blocks(self) -> list[nn.Module]:
        """The parts that a compiler takes one by one: the members of the outermost sequences of layers.

        As one graph all gradients would be ready at the end of the backward pass at once, and could not be
        averaged while it runs; and equal blocks are compiled once.
        """
        return _members(self) or [self]

    def attention_layers(self) -> dict[str, nn.Module]:
        """The attention modules by name; empty for an encoder without attention."""
        return {}

    def attention_of(
        self, layer: Any, inputs: tuple[Any, ...], options: dict[str, Any], images_BCHW: Tensor
    ) -> Attention:
        """What one of `attention_layers` looks at when it is called with these
        arguments while these images pass.
        """
        return Attention(layer.attention_weights(*inputs), *layer.grids(*inputs))

    @torch.no_grad()
    def look(self, images_BCHW: Tensor) -> dict[str, Attention]:
        """What each attention layer looks at, by its name and in the order of their work,
        recomputed for the asking.
        """
        seen: dict[str, Attention] = {}

        def recompute(name: str) -> Any:
            def hook(layer: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
                seen[name] = self.attention_of(layer, inputs, options, images_BCHW)

            return hook

        layers = self.attention_layers().items()
        hooks = [
            layer.register_forward_pre_hook(recompute(name), with_kwargs=True) for name, layer in layers
        ]
        try:
            self(images_BCHW)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def attention(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Attention weights of each attention layer, [B, heads, queries, keys] by its name,
        recomputed for the asking.
        """
        return {name: layer.weights_BhQK for name, layer in self.look(images_BCHW).items()}


def _members(module: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            # its members are called by themselves, and may be sequences of blocks
            for member in child:
                found += list(member) if isinstance(member, nn.Sequential) else [member]
        elif isinstance(child, nn.Sequential):
            found += list(child)
        else:
            found += _members(child)
    # a layer by itself has nothing to fuse
    return [part for part in found if any(True for _ in part.children())]


def keyword_arguments(encoder: type[Encoder], local_names: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments that a constructor was called with, of all its `locals()`:
    what `spec` must hold.
    """
    parameters = inspect.signature(encoder).parameters.values()
    return {p.name: local_names[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


def pooled(maps: list[Tensor]) -> Tensor:
    """Mean of the last map over positions, [B, channels[-1]]: the features of an image."""
    return maps[-1].mean((2, 3))
