"""A feature pyramid on the maps of any encoder."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from pretrain.encoders.base import Encoder

GROUPS = 32  # of group norm; statistics of a batch would mix images, and batches are small in detection


class Pyramid(nn.Module):
    """Maps of equal channels at chosen strides (FPN, https://arxiv.org/abs/1612.03144), by torchvision's.

    Of several encoder maps of one stride (transformers) the deepest is taken. A stride finer than the
    encoder's finest is made by resampling that map, as in ViTDet (https://arxiv.org/abs/2203.16527), one
    coarser than its coarsest by convolutions of stride 2.
    Each map enters through a 1x1 convolution and group norm, whatever its scale.

    Args:
        encoder: whose maps these are.
        strides: wanted, finest first, each twice the one before.
        channels: of all maps; a multiple of 32.
    """

    def __init__(self, encoder: Encoder, *, strides: Sequence[int], channels: int) -> None:
        super().__init__()
        deepest = {stride: index for index, stride in enumerate(encoder.strides)}
        finest = max((stride for stride in deepest if stride <= strides[0]), default=min(deepest))
        self._maps = [deepest[stride] for stride in sorted(deepest) if stride >= finest]
        map_strides = [encoder.strides[index] for index in self._maps]
        # what is laid beneath the encoder's finest map, and above its coarsest
        finer = [stride for stride in strides if stride < map_strides[0]]
        coarser = range(int(math.log2(max(1, strides[-1] // map_strides[-1]))))
        self._scales = [map_strides[0] // stride for stride in finer]
        levels = [*finer, *map_strides]
        self._taken = [index for index, stride in enumerate(levels) if stride in strides]
        in_channels = [encoder.channels[self._maps[0]]] * len(finer) + [
            encoder.channels[i] for i in self._maps
        ]
        self.fpn = FeaturePyramidNetwork(in_channels, channels, norm_layer=partial(nn.GroupNorm, GROUPS))
        for index in set(range(len(levels))) - set(self._taken):
            self.fpn.layer_blocks[index] = nn.Identity()  # of a map that only serves the finer ones
        self.coarser = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.GroupNorm(GROUPS, channels)
            )
            for _ in coarser
        )
        self._num = len(strides)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Encoder maps -> one map [B, channels, H / stride, W / stride] for each stride."""
        chosen = [maps[index] for index in self._maps]
        finer = [F.interpolate(chosen[0], scale_factor=scale, mode="nearest") for scale in self._scales]
        named = OrderedDict((str(index), level) for index, level in enumerate([*finer, *chosen]))
        done = list(self.fpn(named).values())
        levels = [done[index] for index in self._taken]
        top = done[-1]
        for down in self.coarser:
            top = down(F.relu(top))
            levels.append(top)
        return levels[-self._num :]
