"""Numbers that show without labels whether a run is healthy, and what they mean in words."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.encoders.layers import at_least_float32

# what the health of a batch is taken from where it has more:
# the numbers need no more, and cost grows with the cube
MAX_COLUMNS, MAX_PAIRED_ROWS = 1024, 1024
EMBEDDING_NUMBERS = ("spread", "effective_rank", "alignment", "uniformity")  # of `embedding_health`


def watched_part(embeddings_BD: Tensor) -> Tensor:
    """At most `MAX_COLUMNS` columns, random but the same each time and on every rank; no gradient."""
    num_columns = embeddings_BD.shape[1]
    if num_columns <= MAX_COLUMNS:
        return embeddings_BD.detach()
    chosen = torch.randperm(num_columns, generator=torch.Generator().manual_seed(num_columns))[:MAX_COLUMNS]
    return embeddings_BD.detach()[:, chosen.to(embeddings_BD.device)]


def spread(embeddings_BD: Tensor) -> float:
    """Mean standard deviation of the normalised embeddings' coordinates, times sqrt(D).

    1 when they fill the sphere, 0 when all are one point (SimSiam,
    https://arxiv.org/abs/2011.10566, section 4.1).
    """
    normalised = F.normalize(at_least_float32(embeddings_BD.detach()), dim=1)
    if len(normalised) < 2:
        return math.nan
    return float(normalised.std(0).mean() * embeddings_BD.shape[1] ** 0.5)


@torch.no_grad()
def embedding_health(first_BD: Tensor, second_BD: Tensor) -> dict[str, float]:
    """Health of the embeddings of two views of the same images;
    NaN where numbers that are not finite leave none.

    Computed in float32, or in float64 where they are float64; give it what `watched_part` leaves.

    - `spread`: see there.
    - `effective_rank`: RankMe, exp of the entropy of the singular values' fractions
      (https://arxiv.org/abs/2210.02885); from 1 to min(B, D).
    - `alignment`: mean squared distance of the two views, 0 to 4, lower is closer; `uniformity`: log of the
      mean Gaussian potential of pairs (of the first `MAX_PAIRED_ROWS` images), 0 when collapsed, lower is
      more even (https://arxiv.org/abs/2005.10242).
    """
    raw = at_least_float32(first_BD)
    first, second = F.normalize(raw, dim=1), F.normalize(at_least_float32(second_BD), dim=1)
    pairs = torch.pdist(first[:MAX_PAIRED_ROWS])
    return {
        "spread": spread(raw),
        "effective_rank": effective_rank(raw),
        "alignment": float((first - second).square().sum(1).mean()),
        "uniformity": float(pairs.square().mul(-2).exp().mean().log()) if len(first) > 1 else math.nan,
    }


def effective_rank(embeddings_BD: Tensor) -> float:
    """RankMe, see `embedding_health`; NaN of embeddings that are not finite.

    In float32 what lies on one point or line comes out below 1.5, where float64 says 1.0.
    """
    embeddings = at_least_float32(embeddings_BD)
    if not torch.isfinite(embeddings).all():
        return math.nan  # for which there is no decomposition
    # fractions do not change, and squares stay finite
    embeddings = embeddings / embeddings.abs().max().clamp_min(torch.finfo(embeddings.dtype).tiny)
    # singular values by the eigenvalues of the smaller product:
    # a ninth of the time at 1024 x 4096, and equal to 1e-6
    smaller = embeddings if embeddings.shape[0] <= embeddings.shape[1] else embeddings.T
    fractions = torch.linalg.eigvalsh(smaller @ smaller.T).clamp_min(0).sqrt()
    fractions = fractions / fractions.sum().clamp_min(1e-12) + 1e-12
    return float(torch.exp(-(fractions * fractions.log()).sum()))


@torch.no_grad()
def assignment_information(probabilities_BK: Tensor) -> Tensor:
    """What an image's assignment to K outputs says about the image:
    entropy of the mean less mean entropy, in nats.

    From 0, when all images have the same, to log(min(B, K)).
    """
    mean = probabilities_BK.mean(0)
    return torch.special.entr(mean).sum() - torch.special.entr(probabilities_BK).sum(1).mean()


@torch.no_grad()
def outputs_in_use(probabilities_BK: Tensor) -> Tensor:
    """How many of K outputs a batch is assigned to, 1 to K: exp of the mean assignment's entropy."""
    return torch.special.entr(probabilities_BK.mean(0)).sum().exp()


class Finding(NamedTuple):
    """Something that is wrong: its kind, and a line on what is seen, since when, and what helps."""

    kind: str
    text: str


def fallen_rank(trained: float, untrained: float) -> Finding | None:
    """What is wrong with an encoder whose features use hardly a dimension (RankMe),
    and fewer than with its first weights.

    Methods watch the embeddings of their heads, which batch normalisation and losses on the embeddings'
    distribution (LeJEPA's) keep spread while the features below them collapse.
    """
    if not trained < min(MIN_RANK, 0.5 * untrained):  # NaN is told elsewhere
        return None
    return Finding(
        "collapse",
        f"collapse: the encoder's features of all images lie nearly on one line (RankMe {trained:.1f}, and "
        f"{untrained:.1f} before training); a lower learning rate usually helps",
    )


# lines of the log in a row that must show a thing before it is told; fresh networks look bad for a while
PATIENCE = 3
# ranks: healthy runs of batch 64 stay above 11 from their first line on,
# SimSiam without its predictor falls to 4 to 5
MIN_SPREAD, MIN_RANK, MIN_INFORMATION, MIN_DISTANCE = 0.05, 6.0, 1e-3, 1e-8
# a healthy DINO of batch 64 uses 200 and more, one without centring 7 after 24 steps and 2 after 40
MIN_OUTPUTS = 4.0
# students that learn explain 2 % and more after a quarter of 500 steps,
# 5 % after a tenth of thousands; random weights 0
MIN_EXPLAINED = 0.01
COLLAPSES = frozenset({"collapse", "collapse of assignments", "dead queue"})
EXPLODED, VANISHED = 100.0, 1e-7
NEAR_CHANCE, MIN_STEPS = 1.05, 50


class HealthWatch:
    """Reads the numbers of each log line.

    Args:
        num_steps: of the run; in the first tenth, while the learning rate rises, nothing is expected to be
            learnt.
        batch_size_global: of the run.
    """

    def __init__(self, *, num_steps: int, batch_size_global: int) -> None:
        self._num_steps, self._batch_size = num_steps, batch_size_global
        self._since: dict[str, list[int]] = {}
        self._norms: deque[float] = deque(maxlen=50)
        self._losses: deque[float] = deque(maxlen=3)

    def look(
        self, step: int, numbers: Mapping[str, float], *, dim: int = 0, chance_loss: float | None = None
    ) -> list[Finding]:
        """What the numbers of this step say is wrong and has been for a while; empty for a healthy run."""
        seen = {kind: (what, helps) for kind, what, helps in self._seen(step, numbers, dim, chance_loss)}
        self._since = {kind: [*self._since.get(kind, []), step] for kind in seen}
        return [
            Finding(kind, f"{kind}: {what}, since step {self._since[kind][0]}; {helps}")
            for kind, (what, helps) in seen.items()
            if len(self._since[kind]) >= PATIENCE
        ]

    def _seen(
        self, step: int, numbers: Mapping[str, float], dim: int, chance_loss: float | None
    ) -> Iterator[tuple[str, str, str]]:
        size = min(self._batch_size, dim)
        embeddings, rank = numbers.get("spread", 1.0), numbers.get("effective_rank", math.inf)
        if embeddings < MIN_SPREAD or rank < min(MIN_RANK, 0.1 * size):
            yield (
                "collapse",
                f"all images get nearly the same embedding (spread {embeddings:.3f} of 1, effective rank "
                f"{rank:.1f} of {size})",
                "a lower learning rate, a longer warm-up or a larger batch usually helps",
            )
        yield from self._of_loss(step, numbers.get("loss", math.nan), chance_loss)
        named = ("teacher_explained", "maps_explained")
        explained = max((numbers[name] for name in named if name in numbers), default=1.0)
        if step > self._num_steps // 3 and explained < MIN_EXPLAINED:
            yield (
                "no learning",
                f"the student explains {100 * max(0.0, explained):.1f} % of the teacher's variance, no more "
                "than a constant would",
                "another learning rate, milder crops or a teacher that knows images like these usually help",
            )
        information = numbers.get("assignment_information", math.inf)
        in_use = numbers.get("outputs_in_use", math.inf)
        if information < MIN_INFORMATION or in_use < MIN_OUTPUTS:
            alike = f"the assignment carries {information:.4f} nats about an image"
            few = f"{in_use:.1f} outputs are in use"
            yield (
                "collapse of assignments",
                f"all images get the same assignment ({alike if information < MIN_INFORMATION else few})",
                "centring, a lower teacher temperature or a lower learning rate usually helps",
            )
        if numbers.get("queue_spread", 1.0) < MIN_SPREAD:
            yield (
                "dead queue",
                f"all keys in the queue are nearly the same (spread {numbers['queue_spread']:.3f} of 1)",
                "a lower learning rate or a higher temperature usually helps",
            )
        if numbers.get("teacher_distance", math.inf) < MIN_DISTANCE:
            yield (
                "idle teacher",
                f"teacher and student are equal (parameters differ by {numbers['teacher_distance']:.1e} of "
                "their norm)",
                "check that the learning rate is above 0 and the momentum near 1",
            )
        yield from self._of_gradient(numbers.get("gradient_norm", math.nan))

    def _of_loss(self, step: int, loss: float, chance: float | None) -> Iterator[tuple[str, str, str]]:
        before = max(self._losses, default=-math.inf)
        if math.isfinite(loss):
            self._losses.append(loss)
        # at the low rates of the warm-up nothing is learnt yet; a falling loss may start above chance
        late = step > max(MIN_STEPS, self._num_steps // 10)
        if chance is None or not late or not loss > 0.99 * max(chance, before):
            return
        what = f"the loss {loss:.3f} is stuck at its chance value {chance:.3f}"
        helps = "another learning rate or milder crops usually help"
        if loss >= NEAR_CHANCE * chance:
            what = f"the loss {loss:.3f} does not fall and is above {chance:.3f}, "
            what += "that of an untrained network"
            helps = "a lower learning rate usually helps"
        yield "no learning", what, helps

    def _of_gradient(self, norm: float) -> Iterator[tuple[str, str, str]]:
        usual = statistics.median(self._norms) if len(self._norms) >= 10 else math.nan
        if norm > EXPLODED * usual:
            yield (
                "exploding gradient",
                f"its norm {norm:.3g} is {norm / usual:.0f} times the usual {usual:.3g}",
                "a lower learning rate or training.clip_gradient=1 usually helps",
            )
        elif norm < VANISHED:
            yield (
                "vanishing gradient",
                f"its norm is {norm:.1e}",
                "collapse is the usual cause; a lower learning rate or another method helps",
            )
        elif math.isfinite(norm):
            self._norms.append(norm)
