"""The sentence: a transformer decoder (https://arxiv.org/abs/1706.03762, norms before) over a memory.

Shapes: B sentences (times beams), L tokens, M memory entries, D channels, h heads,
V tokens of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class LayerCache:
    """Keys and values of a layer, [B, h, length, D / h]:
    of the memory, and of the tokens so far (None before the first).

    Several sentences in a row may share an image's memory:
    those of the tokens then have a multiple of its rows.
    """

    memory_keys: Tensor
    memory_values: Tensor
    keys: Tensor | None = None
    values: Tensor | None = None

    def keep(self, rows: Tensor) -> None:
        """Goes on with these sentences, in the order of their images and equally many of each."""
        assert self.keys is not None and self.values is not None
        self.keys, self.values = self.keys[rows], self.values[rows]


class DecoderLayer(nn.Module):
    """Attention over the tokens before, attention over the memory, and an MLP,
    each behind a norm and around a residual.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out1 = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.out2 = nn.Linear(width, width)
        self.memory_kv = nn.Linear(width, 2 * width)
        self.norm3 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def begin(self, memory_BMD: Tensor) -> LayerCache:
        """What does not change while a sentence is written."""
        keys, values = map(self._heads, self.memory_kv(memory_BMD).chunk(2, dim=-1))
        return LayerCache(keys, values)

    def forward(self, x_BLD: Tensor, cache: LayerCache) -> Tensor:
        """Same shape; the tokens come after those of the cache, which takes them in."""
        queries, keys, values = map(self._heads, self.qkv(self.norm1(x_BLD)).chunk(3, dim=-1))
        if cache.keys is not None and cache.values is not None:
            assert x_BLD.shape[1] == 1, "with a cache tokens come one by one"
            keys, values = torch.cat([cache.keys, keys], 2), torch.cat([cache.values, values], 2)
        cache.keys, cache.values = keys, values
        seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=x_BLD.shape[1] > 1)
        x_BLD = x_BLD + self.dropout(self.out1(self._joined(seen)))
        # the sentences of an image ask its memory together
        asking = self.query(self.norm2(x_BLD)).reshape(len(cache.memory_keys), -1, x_BLD.shape[-1])
        seen = F.scaled_dot_product_attention(self._heads(asking), cache.memory_keys, cache.memory_values)
        x_BLD = x_BLD + self.dropout(self.out2(self._joined(seen).reshape(x_BLD.shape)))
        return x_BLD + self.dropout(self.mlp(self.norm3(x_BLD)))

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _joined(self, x_BhLd: Tensor) -> Tensor:
        return x_BhLd.transpose(1, 2).flatten(-2)


class SentenceDecoder(nn.Module):
    """Next-token scores of sentences, given a memory.

    Args:
        num_tokens: size of the vocabulary.
        max_tokens: longest sentence, the end token included.
        width, depth, num_heads: channels, layers and attention heads.
        dropout: of embeddings and branches.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        max_tokens: int,
        width: int,
        depth: int,
        num_heads: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.tokens, self.positions = nn.Embedding(num_tokens, width), nn.Embedding(max_tokens, width)
        self.layers = nn.ModuleList(DecoderLayer(width, num_heads, dropout) for _ in range(depth))
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=width**-0.5)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        # what the branches add up to does not grow with depth, as in GPT-2
        for layer in self._layers():
            for last in (layer.out1, layer.out2, layer.mlp[2]):
                assert isinstance(last, nn.Linear)
                nn.init.normal_(last.weight, std=(3 * depth * last.in_features) ** -0.5)

    def forward(self, tokens_BL: Tensor, memory_BMD: Tensor) -> Tensor:
        """Scores [B, L, V] of what follows each token, all at once."""
        return self._scores(tokens_BL, self.begin(memory_BMD), 0)

    def begin(self, memory_BMD: Tensor) -> list[LayerCache]:
        """An empty cache."""
        return [layer.begin(memory_BMD) for layer in self._layers()]

    def step(self, tokens_B: Tensor, cache: list[LayerCache]) -> Tensor:
        """Log-probabilities float32 [B, V] of what follows these tokens,
        which come after those of the cache.
        """
        keys = cache[0].keys
        scores_BLV = self._scores(tokens_B[:, None], cache, 0 if keys is None else keys.shape[2])
        return scores_BLV[:, 0].float().log_softmax(-1)

    def _scores(self, tokens_BL: Tensor, cache: list[LayerCache], start: int) -> Tensor:
        positions_L = torch.arange(start, start + tokens_BL.shape[1], device=tokens_BL.device)
        scale = self.tokens.embedding_dim**0.5
        x_BLD = self.dropout(self.tokens(tokens_BL) * scale + self.positions(positions_L))
        for layer, layer_cache in zip(self._layers(), cache, strict=True):
            x_BLD = layer(x_BLD, layer_cache)
        # the embedding of a token is what its score is read with (https://arxiv.org/abs/1608.05859)
        return F.linear(self.norm(x_BLD), self.tokens.weight)

    def _layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]
