"""How much a model's score drops when images get worse: every corruption at five strengths."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from cluster.training.rank_context import RankContext
from finetune.tasks import TASKS
from finetune.tasks.base import Predictor
from pretrain.data.reading.shards import Shards
from pretrain.data.views.corruptions import CORRUPTIONS, GROUPS, STRENGTHS, CorruptedImages

FILE = "corruptions.json"


def evaluate_corrupted(
    predictor: Predictor,
    shards: Shards,
    context: RankContext,
    *,
    clean: float,
    decode_threads: int = 1,
    seed: int = 0,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """The task's score under each corruption, after ImageNet-C (https://arxiv.org/abs/1903.12261).

    The corruption comes behind the crop, so it meets the pixels that the network gets.

    Args:
        clean: the score on the images as they are.
        seed: of what is drawn.
        say: takes a line as each kind is done.

    Returns the metric's name, `clean`, `kinds` (a list of the five strengths' scores by kind), and the means
    `by_kind`, `by_group`, `by_strength` and over all of them, `mean`; `kept` is that mean over `clean`.
    """
    metric = TASKS[predictor.config["task"]].best_metric
    transform = predictor.transform
    kinds: dict[str, list[float]] = {}
    say(f"{'':16}" + "".join(f"{f'strength {strength}':>12}" for strength in STRENGTHS) + f"{'mean':>8}")
    try:
        for kind in CORRUPTIONS:
            kinds[kind] = []
            for strength in STRENGTHS:
                predictor.transform = CorruptedImages(transform, kind, strength, seed=seed)
                evaluation = predictor.evaluate(shards, context, decode_threads=decode_threads)
                kinds[kind].append(evaluation.metrics[metric])
            scores = "".join(f"{score:>12.4f}" for score in kinds[kind])
            say(f"{kind:16}{scores}{statistics.mean(kinds[kind]):>8.4f}")
    finally:
        predictor.transform = transform
    by_kind = {kind: statistics.mean(scores) for kind, scores in kinds.items()}
    mean = statistics.mean(by_kind.values())
    return {
        "metric": metric,
        "clean": clean,
        "kinds": kinds,
        "by_kind": by_kind,
        "by_group": {
            group: statistics.mean(by_kind[kind] for kind in members) for group, members in GROUPS.items()
        },
        "by_strength": [
            statistics.mean(scores[level] for scores in kinds.values()) for level in range(len(STRENGTHS))
        ],
        "mean": mean,
        "kept": mean / clean if clean else None,
    }
