"""Writing a sentence token by token: beam search; with one beam it is the greedy choice.

Shapes: B images, W beams, V tokens of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.tasks.summarization.decoder import SentenceDecoder
from finetune.tasks.summarization.tokenizer import END, PAD, START


@dataclass(frozen=True)
class Written:
    """A sentence: its token ids without start and end, and the log-probability of it with its end."""

    ids: list[int]
    log_probability: float


def length_penalty(num_tokens: int, strength: float) -> float:
    """A log-probability's divisor (GNMT, https://arxiv.org/abs/1609.08144, equation 14): 1 at strength 0."""
    return float(((5 + num_tokens) / 6) ** strength)


@torch.no_grad()
def write(
    decoder: SentenceDecoder, memory_BMD: Tensor, *, num_beams: int = 1, penalty: float = 0.6
) -> list[Written]:
    """The best sentence of each memory entry, by log-probability over `length_penalty`.

    A sentence that has not ended after the decoder's `max_tokens` ends there. Keys and values of the past
    are kept, so a token costs one position's work.
    """
    num_images, width, device = len(memory_BMD), num_beams, memory_BMD.device
    cache = decoder.begin(memory_BMD)
    first_row_B1 = torch.arange(num_images, device=device)[:, None]
    lost = float("-inf")

    # the first token has one beam an image; the others are born of it
    tokens = torch.full((num_images, 1, 1), START, device=device)
    alive_BW = torch.zeros(num_images, 1, device=device)
    done_tokens = torch.full((num_images, width, 1), PAD, device=device)
    done_score_BW = torch.full((num_images, width), lost, device=device)
    done_probability_BW = done_score_BW.clone()
    open_B1 = torch.ones(num_images, 1, dtype=torch.bool, device=device)

    for length in range(1, decoder.max_tokens + 1):
        beams = tokens.shape[1]
        following = decoder.step(tokens[:, :, -1].flatten(), cache).unflatten(0, (num_images, beams))
        following[..., [PAD, START]] = lost
        total = alive_BW[..., None] + following
        if length == decoder.max_tokens:  # nothing but the end is left
            total[..., torch.arange(total.shape[-1], device=device) != END] = lost
        vocabulary = total.shape[-1]
        score, index = total.flatten(1).topk(min(2 * width, beams * vocabulary))
        beam, token = index // vocabulary, index % vocabulary
        grown = torch.cat([_rows(tokens, beam), token[..., None]], dim=-1)

        # sentences that end here, if they are among the best beams, beside those that have ended
        ended = token == END
        counted = ended & open_B1 & (torch.arange(token.shape[1], device=device) < width)
        done_tokens = torch.cat([done_tokens, torch.full_like(done_tokens[..., :1], PAD)], dim=-1)
        all_scores = torch.cat(
            [done_score_BW, (score / length_penalty(length, penalty)).where(counted, lost)], dim=1
        )
        done_score_BW, best = all_scores.topk(width)
        done_tokens = _rows(torch.cat([done_tokens, grown], dim=1), best)
        done_probability_BW = torch.cat([done_probability_BW, score.where(counted, lost)], dim=1).gather(
            1, best
        )

        # those that go on
        alive_BW, chosen = score.where(~ended, lost).topk(min(width, score.shape[1]))
        tokens, beam = _rows(grown, chosen), beam.gather(1, chosen)
        # an image is done with as many sentences as beams, or when no other can be better: going on only
        # lowers a probability
        max_score_B = alive_BW[:, 0] / length_penalty(decoder.max_tokens, penalty)
        open_B1 = ((done_score_BW[:, -1] == lost) & (done_score_BW[:, 0] < max_score_B))[:, None]
        if not bool(open_B1.any()):
            break
        for layer in cache:
            layer.keep((first_row_B1 * beams + beam).flatten())

    return [
        Written([token for token in row if token not in (PAD, START, END)], probability)
        for row, probability in zip(
            done_tokens[:, 0].tolist(), done_probability_BW[:, 0].tolist(), strict=True
        )
    ]


def _rows(values: Tensor, index_BW: Tensor) -> Tensor:
    """Of [B, N, L] the rows of each image that the index names, [B, W, L]."""
    return values.gather(1, index_BW[..., None].expand(-1, -1, values.shape[-1]))
