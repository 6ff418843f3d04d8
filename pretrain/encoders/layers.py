"""Attention whose queries, keys and values are made by convolutions, over all positions of a map.

With A = softmax(Q K^T / sqrt(d)) over positions the output is A V. Maps are batch-channel-height-width;
heads share the channels evenly. Keys and values may be pooled to fewer positions: with `max_keys` the
pooling grows with the map so that a query never sees more than so many keys, and the cost stays linear in
the number of pixels (a fixed stride s only divides the quadratic cost by s squared). `hard` attention lets
each query keep its `top_k` strongest keys.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.errors import UserError, choose

MODES = ("soft", "hard")


def at_least_float32(tensor: Tensor) -> Tensor:
    """In float32 where autocast left less: softmax over similarities and statistics of batches need it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class PointwiseConv(nn.Conv2d):
    """`nn.Conv2d` with a kernel of 1, computed as a matrix product over the channels of each position.

    For channels-last maps no copy is needed; on CPUs a step of the family takes 4 to 11 % less
    (`python -m tests.benchmarks.convolutions`).
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, out_channels, H, W] of [B, in_channels, H, W]."""
        return F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class DepthwiseConv(nn.Conv2d):
    """A convolution of each channel by itself that keeps the size of the map; `kernel_size` is odd."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, input: Tensor) -> Tensor:
        """Same shape."""
        if input.requires_grad and min(input.shape[2:]) < self.kernel_size[0] and input.device.type == "cpu":
            # the same sums; on maps smaller than the kernel the CPU's gradient takes ten
            # times as long with its own padding
            padded = F.pad(input, [self.padding[0]] * 4)  # type: ignore[list-item]
            return F.conv2d(padded, self.weight, self.bias, groups=self.groups)
        return super().forward(input)


class AttentionOverMaps(nn.Module):
    """What the attention layers share: they differ in how queries and keys are made (`project`).

    Args:
        dim: channels in and out; divisible by `num_heads`.
        num_heads: each attends with dim / num_heads channels.
        mode: `soft` (all keys) or `hard` (the `top_k` strongest of each query; at most all there are).
        kv_stride: keys and values are averages of blocks of this side; 1 keeps all positions.
        max_keys: the stride is raised until a map has at most so many keys; 0 for no limit.

    Raises UserError for an unknown mode, heads that do not divide the channels, or numbers out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        *,
        mode: str = "soft",
        top_k: int = 16,
        kv_stride: int = 1,
        max_keys: int = 0,
    ) -> None:
        super().__init__()
        choose("attention", mode, MODES)
        if num_heads < 1 or dim % num_heads:
            raise UserError(f"{num_heads} attention heads do not divide {dim} channels; choose a divisor")
        if top_k < 1 or kv_stride < 1 or max_keys < 0:
            raise UserError(
                f"top_k={top_k} and kv_stride={kv_stride} must be at least 1, max_keys={max_keys} at least 0"
            )
        self.dim, self.num_heads, self.mode, self.top_k = dim, num_heads, mode, top_k
        self.kv_stride, self.max_keys = kv_stride, max_keys

    def project(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Queries, and the features that serve as keys and values, both [B, C, H, W]."""
        raise NotImplementedError

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """A V as a map [B, C, H, W]."""
        return self.attend(*self.project(x_BCHW))

    def attend(self, queries_BCHW: Tensor, keys_BCHW: Tensor) -> Tensor:
        """A V as a map, keys serving as values too."""
        q, kv = self._tokens(queries_BCHW), self._tokens(self._pooled(keys_BCHW))
        mask = None if self.mode == "soft" else self._strongest(q, kv)
        out_BhNd = F.scaled_dot_product_attention(q, kv, kv, attn_mask=mask)
        batch, _, height, width = queries_BCHW.shape
        return out_BhNd.permute(0, 2, 1, 3).reshape(batch, height, width, self.dim).permute(0, 3, 1, 2)

    def attention_weights(self, x_BCHW: Tensor) -> Tensor:
        """A [B, heads, queries, keys], recomputed: the fused kernel of `forward` never holds it.
        Rows sum to 1.
        """
        queries, keys = self.project(x_BCHW)
        q, kv = self._tokens(queries), self._tokens(self._pooled(keys))
        scores = q @ kv.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if self.mode == "hard":
            scores = scores.masked_fill(~self._strongest(q, kv), -math.inf)
        return scores.softmax(-1)

    def values(self, x_BCHW: Tensor) -> Tensor:
        """V [B, heads, keys, d], so that `attention_weights(x) @ values(x)` is the output's heads."""
        return self._tokens(self._pooled(self.project(x_BCHW)[1]))

    def _tokens(self, map_BCHW: Tensor) -> Tensor:
        """[B, heads, H * W, d]."""
        batch, _, height, width = map_BCHW.shape
        return (
            map_BCHW.permute(0, 2, 3, 1).reshape(batch, height * width, self.num_heads, -1).transpose(1, 2)
        )

    def grids(self, x_BCHW: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of the map of queries, and of the block of it that a key is the average of."""
        height, width = x_BCHW.shape[2:]
        stride = self.kv_stride
        if self.max_keys:
            while math.ceil(height / stride) * math.ceil(width / stride) > self.max_keys:
                stride += 1
        return (height, width), (min(stride, height), min(stride, width))

    def _pooled(self, map_BCHW: Tensor) -> Tensor:
        _, block = self.grids(map_BCHW)
        if block == (1, 1):
            return map_BCHW
        # ceil_mode keeps the rest of a size that the stride does not divide;
        # its blocks are averages of what is there
        return F.avg_pool2d(map_BCHW, block, ceil_mode=True, count_include_pad=False)

    @torch.no_grad()
    def _strongest(self, q: Tensor, kv: Tensor) -> Tensor:
        """bool [B, heads, queries, keys]: exactly min(top_k, keys) true in each row.
        The choice has no gradient.
        """
        scores = q @ kv.transpose(-2, -1)
        index = scores.topk(min(self.top_k, scores.shape[-1]), dim=-1).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, index, True)


class ConvAttention(AttentionOverMaps):
    """One 3x3 convolution gives the features that serve as queries, keys and values."""

    def __init__(
        self, dim: int, num_heads: int = 1, *, in_channels: int | None = None, **attention: int | str
    ) -> None:
        super().__init__(dim, num_heads, **attention)  # type: ignore[arg-type]
        self.features = nn.Conv2d(in_channels or dim, dim, 3, padding=1)

    def project(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The same features twice."""
        features = self.features(x_BCHW)
        return features, features


class ConvolutionalAttention(AttentionOverMaps):
    """Two 3x3 convolutions: queries from the first, keys and values from the second."""

    def __init__(
        self, dim: int, num_heads: int = 1, *, in_channels: int | None = None, **attention: int | str
    ) -> None:
        super().__init__(dim, num_heads, **attention)  # type: ignore[arg-type]
        self.queries = nn.Conv2d(in_channels or dim, dim, 3, padding=1)
        self.keys = nn.Conv2d(in_channels or dim, dim, 3, padding=1)

    def project(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys."""
        return self.queries(x_BCHW), self.keys(x_BCHW)


class SeparableConvolutionalAttention(AttentionOverMaps):
    """ConvolutionalAttention for deep networks: depthwise 3x3 and pointwise projections, as in CvT
    (https://arxiv.org/abs/2103.15808), and an output projection.

    A depthwise convolution of the queries is added to A V: it tells positions apart without an embedding of
    fixed size, like the locally-enhanced encoding of CSWin (https://arxiv.org/abs/2107.00652), and keeps a
    path through the queries where a map has a single key.
    """

    def __init__(self, dim: int, num_heads: int = 1, **attention: int | str) -> None:
        super().__init__(dim, num_heads, **attention)  # type: ignore[arg-type]
        self.queries = nn.Sequential(DepthwiseConv(dim, 3), PointwiseConv(dim, dim, 1))
        self.keys = nn.Sequential(DepthwiseConv(dim, 3), PointwiseConv(dim, dim, 1))
        self.position = DepthwiseConv(dim, 3)
        self.output = PointwiseConv(dim, dim, 1)

    def project(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys."""
        return self.queries(x_BCHW), self.keys(x_BCHW)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The projection of A V plus the convolved queries, [B, C, H, W]."""
        queries, keys = self.project(x_BCHW)
        projected: Tensor = self.output(self.attend(queries, keys) + self.position(queries))
        return projected


class LayerNormOverChannels(nn.Module):
    """LayerNorm over the channels of each position of images_BCHW; free of copies for channels-last maps.

    The output has the input's dtype. Autocast would leave float32:
    twice the bytes in all that is added to it.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Same shape and dtype."""
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        normed_BHWC = F.layer_norm(x_BHWC, self.weight.shape, self.weight, self.bias, self.eps)
        return normed_BHWC.to(x_BCHW.dtype).permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Leaves out a residual branch for whole samples (stochastic depth,
    https://arxiv.org/abs/1603.09382).
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, branch_BCHW: Tensor) -> Tensor:
        """The branch, or zeros for the samples that are left out; scaled so that the mean stays."""
        if not self.training or self.drop_prob == 0:
            return branch_BCHW
        keep = 1 - self.drop_prob
        mask = branch_BCHW.new_empty(len(branch_BCHW), 1, 1, 1).bernoulli_(keep).div_(keep)
        return branch_BCHW * mask
