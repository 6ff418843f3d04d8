"""What a summarizer sees: the encoder's maps as positions, keywords that each look at their own,
and the memory of a sentence.

Shapes: B images, T positions of the map, K keywords, F keywords that the sentence is told, D channels,
M memory entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.tasks.summarization.decoder import SentenceDecoder


@dataclass(frozen=True)
class Seen:
    """What the model sees in images: `logits_BK` of the keywords, where each looks (`attention_BKT`, rows
    sum to 1, T positions of a map of `size_HW`), and the memory that the sentence is written over."""

    logits_BK: Tensor
    attention_BKT: Tensor
    size_HW: tuple[int, int]
    memory_BMD: Tensor


class MapTokens(nn.Module):
    """The last maps as one sequence of tokens with positions:
    coarser maps are enlarged and added to the finest of them.
    """

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in channels)
        self.projections = nn.ModuleList(nn.Linear(dim, width) for dim in channels)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, tuple[int, int]]:
        """Tokens [B, T, D] of maps_BCHW, finest first, and the size of the finest."""
        height, width = maps[0].shape[-2:]
        total: Tensor | None = None
        for map_BCHW, norm, projection in zip(maps, self.norms, self.projections, strict=True):
            own_BDHW = projection(norm(map_BCHW.movedim(1, -1))).movedim(-1, 1)
            if own_BDHW.shape[-2:] != (height, width):
                own_BDHW = F.interpolate(own_BDHW, (height, width), mode="bilinear")
            total = own_BDHW if total is None else total + own_BDHW
        assert total is not None
        tokens_BTD = total.flatten(2).transpose(1, 2)
        positions_TD = positions(height, width, tokens_BTD.shape[-1], tokens_BTD.device)
        return tokens_BTD + positions_TD.to(tokens_BTD), (height, width)


def positions(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of row and column, [height * width, dim]:
    any size of map has its own, and edges are at 0 and 1.

    `dim` is divisible by 4. Frequencies double from one wave over two maps on.
    """
    frequencies = math.pi * 2.0 ** torch.linspace(0, 5, dim // 4, device=device)
    rows, columns = ((torch.arange(size, device=device) + 0.5) / size for size in (height, width))
    along = [
        torch.cat([(x[:, None] * frequencies).sin(), (x[:, None] * frequencies).cos()], 1)
        for x in (rows, columns)
    ]
    grid = torch.cat(
        [along[0][:, None].expand(-1, width, -1), along[1][None].expand(height, -1, -1)],
        dim=-1,
    )
    return grid.flatten(0, 1)


class KeywordHead(nn.Module):
    """One query a keyword looks over the positions and decides what it sees there.

    As in Query2Label (https://arxiv.org/abs/2107.10834) without its layers: queries do not see each other,
    so each keyword's map is all that its score stands on.
    """

    def __init__(self, num_keywords: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(num_keywords, width) * 0.02)
        self.keys, self.values = nn.Linear(width, width), nn.Linear(width, width)
        self.weights = nn.Parameter(torch.randn(num_keywords, width) * width**-0.5)
        # most keywords are absent from most images: https://arxiv.org/abs/1708.02002, section 3.3
        self.biases = nn.Parameter(torch.full((num_keywords,), -math.log(0.9 / 0.1)))

    def forward(self, tokens_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, K], attention [B, K, T] (mean over heads), and what each keyword saw [B, K, D]."""
        tokens_BTD = self.norm(tokens_BTD)
        keys_BThd, values_BThd = (
            layer(tokens_BTD).unflatten(-1, (self.num_heads, -1)) for layer in (self.keys, self.values)
        )
        queries_Khd = self.queries.unflatten(-1, (self.num_heads, -1))
        # queries start near zero: their scale is learnt, from an even look over all positions on
        scores_BhKT = torch.einsum("khd,bthd->bhkt", queries_Khd, keys_BThd)
        attention_BhKT = scores_BhKT.float().softmax(-1).to(values_BThd.dtype)
        seen_BKD = torch.einsum("bhkt,bthd->bkhd", attention_BhKT, values_BThd).flatten(-2)
        logits_BK = (seen_BKD.float() * self.weights).sum(-1) + self.biases
        return logits_BK, attention_BhKT.mean(1), seen_BKD


class Sight(nn.Module):
    """The parts of a summarizer behind its encoder, for a module to inherit; `make_parts` makes them."""

    num_maps: int
    num_fed: int

    def make_parts(
        self,
        channels: Sequence[int],
        *,
        num_keywords: int,
        num_tokens: int,
        max_tokens: int,
        width: int,
        depth: int,
        num_heads: int,
        num_maps: int,
        num_fed: int,
        dropout: float = 0.0,
    ) -> None:
        """Makes what looks at the last `num_maps` of an encoder's maps, of these channels."""
        self.num_maps, self.num_fed = num_maps, min(num_fed, num_keywords)
        self.places = MapTokens(list(channels[-num_maps:]), width)
        self.keywords = KeywordHead(num_keywords, width, num_heads)
        self.names = nn.Embedding(num_keywords, width)
        self.told = nn.Linear(width, width)
        self.memory_norm = nn.LayerNorm(width)
        self.decoder = SentenceDecoder(
            num_tokens=num_tokens,
            max_tokens=max_tokens,
            width=width,
            depth=depth,
            num_heads=num_heads,
            dropout=dropout,
        )

    def look_at(self, maps: list[Tensor]) -> Seen:
        """Keywords and the memory of an encoder's maps."""
        tokens_BTD, size_HW = self.places(maps[-self.num_maps :])
        logits_BK, attention_BKT, seen_BKD = self.keywords(tokens_BTD)
        sure_BK = logits_BK.sigmoid().to(tokens_BTD.dtype)
        # the attended map: each position is told the keywords that look there
        named_BTD = torch.einsum(
            "bkt,bk,kd->btd", attention_BKT, sure_BK, self.names.weight.to(tokens_BTD.dtype)
        )
        memory = [tokens_BTD + named_BTD * tokens_BTD.shape[1]]
        if self.num_fed:
            top_BF = logits_BK.detach().topk(self.num_fed).indices
            seen_BFD = self.told(seen_BKD.gather(1, top_BF[..., None].expand(-1, -1, seen_BKD.shape[-1])))
            memory.append((self.names(top_BF) + seen_BFD) * sure_BK.gather(1, top_BF)[..., None])
        return Seen(logits_BK, attention_BKT, size_HW, self.memory_norm(torch.cat(memory, dim=1)))
