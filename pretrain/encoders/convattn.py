"""The convattn family: a convolutional stem and three stages of convolutional blocks,
then one of convolutional attention.

Convolution where maps are large and attention where they are small follows CoAtNet
(https://arxiv.org/abs/2106.04803), UniFormer (https://arxiv.org/abs/2201.09450) and CAFormer
(https://arxiv.org/abs/2210.13452); attention in the last stage alone, where it is cheap, is what our runs of
equal time chose (`tests/benchmarks/RESULTS.md`, "Encoders") and what a search for latency chose for
EfficientFormer (https://arxiv.org/abs/2206.01191). Projections by depthwise convolution follow CvT
(https://arxiv.org/abs/2103.15808) and CMT (https://arxiv.org/abs/2107.06263). Positions are told apart by
convolution alone, so any input size works.

Chosen by measuring whole steps of nano at 64 pixels, batch 64, on one CPU core (forward and backward,
medians):
- narrow early stages (24 channels and MLPs of twice the width, not 32 and four times): 151 images/s in place
  of 105. Early maps are large, bound by memory bandwidth, and hold few parameters. After six epochs of
  SimCLR on 1,347 photos linear probes gave 30.6 % and 31.2 % on 372 test photos (one seed each, standard
  error 2.4 points): no difference could be seen.
- depthwise 3x3: 5x5 is 10 % slower and 7x7 16 %, and neither learns more in the same time.
- SiLU, 6 % faster than GELU.
- LayerNorm, as fast as BatchNorm and independent of the rest of the batch.
  Maps are channels-last, where it needs no copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from cluster.errors import UserError, choose
from pretrain.encoders.base import Encoder, keyword_arguments
from pretrain.encoders.layers import (
    DepthwiseConv,
    DropPath,
    LayerNormOverChannels,
    PointwiseConv,
    SeparableConvolutionalAttention,
    at_least_float32,
)

NORMS = {"layer": LayerNormOverChannels, "batch": nn.BatchNorm2d}
STEM_STRIDES = (1, 2, 4)


class ConvBlock(nn.Module):
    """A residual of depthwise convolution, norm and MLP (ConvNeXt, https://arxiv.org/abs/2201.03545)."""

    def __init__(self, dim: int, *, kernel_size: int, mlp_ratio: float, norm: str, drop_path: float) -> None:
        super().__init__()
        hidden = round(dim * mlp_ratio)
        self.spatial = DepthwiseConv(dim, kernel_size)
        self.norm = NORMS[norm](dim)
        self.mlp = nn.Sequential(PointwiseConv(dim, hidden, 1), nn.SiLU(), PointwiseConv(hidden, dim, 1))
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Same shape."""
        return x_BCHW + self.drop_path(self.mlp(self.norm(self.spatial(x_BCHW))))


class AttentionBlock(nn.Module):
    """Convolutional attention and a pointwise MLP, each behind a norm and around a residual."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        mlp_ratio: float,
        norm: str,
        drop_path: float,
        **attention: int | str,
    ) -> None:
        super().__init__()
        hidden = round(dim * mlp_ratio)
        self.norm1 = NORMS[norm](dim)
        self.attention = SeparableConvolutionalAttention(dim, num_heads, **attention)
        self.norm2 = NORMS[norm](dim)
        self.mlp = nn.Sequential(PointwiseConv(dim, hidden, 1), nn.SiLU(), PointwiseConv(hidden, dim, 1))
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Same shape."""
        x_BCHW = x_BCHW + self.drop_path(self.attention(self.norm1(x_BCHW)))
        return x_BCHW + self.drop_path(self.mlp(self.norm2(x_BCHW)))


class ConvAttnEncoder(Encoder):
    """Four maps at `stem_stride` times 1, 2, 4 and 8.

    Args:
        name: of `SIZES`.
        in_channels: of the images.
        dims, depths: channels and blocks of the four stages in place of those of the name.
        attention_from: the first stage of attention blocks, 1 to 4; 5 for convolution alone.
        stem_stride: 1, 2 or 4, for images of about 32, 64 and 224 pixels.
        head_dim: channels of an attention head.
        kernel_size: of the convolutional blocks, odd.
        mlp_ratio: hidden channels of the attention blocks' MLPs over their channels.
        conv_mlp_ratio: the same of the convolutional blocks.
        norm: `layer` or `batch`.
        drop_path: probability of leaving out the last block's branches; it rises linearly from 0 at the
            first.
        attention: `soft` or `hard`; `top_k` keys are kept by each query of hard attention.
        kv_stride, max_keys: pooling of keys and values, see `pretrain.encoders.layers`.

    Raises UserError for values out of range.
    """

    def __init__(
        self,
        name: str,
        *,
        in_channels: int = 3,
        dims: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        attention_from: int = 4,
        stem_stride: int = 4,
        head_dim: int = 32,
        kernel_size: int = 3,
        mlp_ratio: float = 4.0,
        conv_mlp_ratio: float = 2.0,
        norm: str = "layer",
        drop_path: float = 0.0,
        attention: str = "soft",
        top_k: int = 16,
        kv_stride: int = 1,
        max_keys: int = 256,
    ) -> None:
        super().__init__()
        dims, depths = list(dims or SIZES[name][0]), list(depths or SIZES[name][1])
        # with the sizes themselves: a saved encoder is built again whatever its name will stand for
        self.spec = {"name": name, "arguments": keyword_arguments(ConvAttnEncoder, locals())}
        _check(name, **self.spec["arguments"])
        self.in_channels, self.channels = in_channels, tuple(dims)
        self.strides = tuple(stem_stride * 2**stage for stage in range(4))

        self.stem = _stem(in_channels, dims[0], stem_stride, norm)
        self.downs = nn.ModuleList(
            [nn.Identity()]
            + [nn.Sequential(NORMS[norm](a), nn.Conv2d(a, b, 2, stride=2)) for a, b in pairwise(dims)]
        )
        drops = [drop_path * block / max(1, sum(depths) - 1) for block in range(sum(depths))]
        convolution = partial(ConvBlock, kernel_size=kernel_size, mlp_ratio=conv_mlp_ratio, norm=norm)
        attending = partial(
            AttentionBlock,
            mlp_ratio=mlp_ratio,
            norm=norm,
            mode=attention,
            top_k=top_k,
            kv_stride=kv_stride,
            max_keys=max_keys,
        )
        self.stages = nn.ModuleList()
        for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True), 1):
            block: Callable[..., nn.Module] = convolution
            if stage >= attention_from:
                block = partial(attending, num_heads=max(1, dim // head_dim))
            self.stages.append(nn.Sequential(*(block(dim, drop_path=drops.pop(0)) for _ in range(depth))))
        self.norm = NORMS[norm](dims[-1])
        self._first_layer = [1 + sum(depths[:stage]) for stage in range(4)]
        self.num_layers = 1 + sum(depths)
        self._initialise(sum(depths))
        self.to(memory_format=torch.channels_last)

    def _initialise(self, num_blocks: int) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                # unit variance through each branch; branches that end in a sum are
                # scaled down so that sums stay near one
                ends_branch = name.endswith(("mlp.2", "attention.output"))
                scale = 1 / math.sqrt(2 * num_blocks) if ends_branch else 1.0
                nn.init.trunc_normal_(module.weight, std=scale / math.sqrt(fan_in))
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """Four maps, finest first, the last normalised; small images are padded to the largest stride."""
        short = [max(0, self.strides[-1] - side) for side in images_BCHW.shape[2:]]
        if any(short):
            images_BCHW = nn.functional.pad(images_BCHW, (0, short[1], 0, short[0]))
        x = self.stem(images_BCHW.contiguous(memory_format=torch.channels_last))
        maps = []
        for down, stage in zip(self.downs, self.stages, strict=True):
            x = stage(_evenly_padded(down, x))
            maps.append(x)
        # features stay exact: losses tell images apart by small differences
        return [*maps[:-1], self.norm(at_least_float32(x))]

    def layer_of(self, parameter_name: str) -> int:
        """0 for the stem; a stage's blocks count on, a stage's downsampling belongs to its first block."""
        part, _, rest = parameter_name.partition(".")
        if part == "stem":
            return 0
        if part == "downs":
            return self._first_layer[int(rest.split(".")[0])]
        if part == "stages":
            stage, block = rest.split(".")[:2]
            return self._first_layer[int(stage)] + int(block)
        return self.num_layers - 1

    def blocks(self) -> list[nn.Module]:
        """See `Encoder.blocks`: stem, downsamplings, and each block of each stage."""
        return [self.stem, *self.downs[1:], *(block for stage in self.stages for block in stage.children())]

    def attention_layers(self) -> dict[str, nn.Module]:
        """Every attention layer, as `stage3.block1` (counted from 1)."""
        layers: dict[str, nn.Module] = {}
        for stage, blocks in enumerate(self.stages, 1):
            for number, block in enumerate(blocks.children(), 1):
                if isinstance(block, AttentionBlock):
                    layers[f"stage{stage}.block{number}"] = block.attention
        return layers


def _check(
    name: str, *, dims: list[int], depths: list[int], attention_from: int, stem_stride: int,
    kernel_size: int, drop_path: float, norm: str, **others: Any,
) -> None:  # fmt: skip
    """Raises UserError for arguments of an encoder that are out of range."""
    for key, values in (("dims", dims), ("depths", depths)):
        if len(values) != 4 or not all(isinstance(value, int) and value >= 1 for value in values):
            raise UserError(f"{name}: {key}={list(values)} is not possible: give four whole numbers above 0")
    if attention_from not in range(1, 6):
        raise UserError(f"{name}: attention_from={attention_from} is not possible (allowed: 1 to 5)")
    if stem_stride not in STEM_STRIDES:
        raise UserError(f"{name}: stem_stride={stem_stride} is not possible (allowed: 1, 2, 4)")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise UserError(f"{name}: kernel_size={kernel_size} is not possible: it must be odd")
    if not 0 <= drop_path < 1:
        raise UserError(f"{name}: drop_path={drop_path} is not possible: it must be at least 0 and below 1")
    for key in ("in_channels", "head_dim"):
        if others[key] < 1:
            raise UserError(f"{name}: {key}={others[key]} is not possible: it must be at least 1")
    for key in ("mlp_ratio", "conv_mlp_ratio"):
        if not 0 < others[key] < math.inf or min(dims) * others[key] < 1:
            raise UserError(
                f"{name}: {key}={others[key]} is not possible: it must be above 0, and is usually 2 to 4"
            )
    choose("norm", norm, NORMS)


def _evenly_padded(down: nn.Module, x_BCHW: Tensor) -> Tensor:
    """A downsampling that keeps the last row and column of an odd size, by repeating them."""
    if isinstance(down, nn.Identity):
        return x_BCHW
    odd_height, odd_width = x_BCHW.shape[2] % 2, x_BCHW.shape[3] % 2
    if odd_height or odd_width:
        x_BCHW = nn.functional.pad(x_BCHW, (0, odd_width, 0, odd_height), mode="replicate")
    down_BCHW: Tensor = down(x_BCHW)
    return down_BCHW


def _stem(in_channels: int, dim: int, stride: int, norm: str) -> nn.Sequential:
    first = nn.Conv2d(in_channels, dim // 2, 3, stride=2 if stride > 1 else 1, padding=1)
    second = nn.Conv2d(dim // 2, dim, 3, stride=2 if stride == 4 else 1, padding=1)
    if stride == 2:
        # one convolution: the second would cost more than the whole first stage at this resolution
        return nn.Sequential(nn.Conv2d(in_channels, dim, 4, stride=2, padding=1), NORMS[norm](dim))
    return nn.Sequential(first, NORMS[norm](dim // 2), nn.SiLU(), second, NORMS[norm](dim))


# name -> (channels, blocks) of the four stages; about 0.6, 5, 25 and 50 million parameters
SIZES: dict[str, tuple[tuple[int, int, int, int], tuple[int, int, int, int]]] = {
    "convattn_nano": ((24, 64, 128, 160), (1, 1, 3, 1)),
    "convattn_tiny": ((48, 96, 192, 320), (2, 2, 5, 3)),
    "convattn_small": ((64, 128, 320, 512), (2, 3, 14, 6)),
    "convattn_base": ((96, 192, 384, 768), (3, 3, 17, 6)),
}
