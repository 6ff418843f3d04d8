"""Metrics of a summarizer over a whole validation set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from finetune.tasks.summarization.caption_metrics import bleu, cider_d, cider_d_of_each, rouge_l
from finetune.tasks.summarization.words import words_of


def sentence_scores(sentences: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`cider_d` in [0, 10], `bleu_4` and `rouge_l` in [0, 1] of texts;
    images without a reference are left out.
    """
    pairs = [(one, several) for one, several in zip(sentences, references, strict=True) if several]
    candidates = [words_of(sentence) for sentence, _ in pairs]
    words = [[words_of(reference) for reference in several] for _, several in pairs]
    return {
        "cider_d": cider_d(candidates, words),
        "bleu_4": bleu(candidates, words)[-1],
        "rouge_l": rouge_l(candidates, words),
    }


def cider_error(sentences: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Standard error of `cider_d`, by which other images of the same kind would move it."""
    pairs = [(one, several) for one, several in zip(sentences, references, strict=True) if several]
    scores = cider_d_of_each(
        [words_of(sentence) for sentence, _ in pairs],
        [[words_of(reference) for reference in several] for _, several in pairs],
    )
    return float(np.std(scores, ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else 0.0


def keyword_scores(scores_NK: np.ndarray, truth_NK: np.ndarray, *, threshold: float) -> dict[str, float]:
    """`keyword_map`: mean over the keywords that occur of their average precision; `keyword_f1`: of all
    decisions at the threshold together (micro). Both in [0, 1]."""
    precision_K = average_precisions(scores_NK, truth_NK)
    said_NK, truly_NK = scores_NK >= threshold, truth_NK > 0
    right, either = int((said_NK & truly_NK).sum()), int(said_NK.sum() + truly_NK.sum())
    occurs_K = truly_NK.any(0)
    return {
        "keyword_map": float(precision_K[occurs_K].mean()) if occurs_K.any() else 0.0,
        "keyword_f1": 2 * right / either if either else 0.0,
    }


def best_threshold(scores_NK: np.ndarray, truth_NK: np.ndarray) -> float:
    """The threshold of the best `keyword_f1` on these images, halfway to the next lower score;
    0.5 where no keyword occurs.
    """
    scores, truth = scores_NK.ravel().astype(np.float64), truth_NK.ravel() > 0
    if not truth.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    f1 = 2 * truth[order].cumsum() / (np.arange(1, len(scores) + 1) + truth.sum())
    f1[:-1][scores[:-1] == scores[1:]] = 0  # equal scores are said together
    last = int(f1.argmax())
    return float((scores[last] + (scores[last + 1] if last + 1 < len(scores) else 0.0)) / 2)


def average_precisions(scores_NK: np.ndarray, truth_NK: np.ndarray) -> np.ndarray:
    """Average precision of each keyword, float [K]; 0 for one that never occurs."""
    # here, because torchmetrics takes longer to import than all else,
    # and a model that predicts has no use for it
    from torchmetrics.functional.classification import binary_average_precision

    precision_K = np.zeros(scores_NK.shape[1])
    for keyword in np.flatnonzero(truth_NK.any(0)):
        scores_N, truth_N = (
            torch.from_numpy(np.ascontiguousarray(x[:, keyword])) for x in (scores_NK, truth_NK)
        )
        precision_K[keyword] = float(binary_average_precision(scores_N, truth_N.long()))
    return precision_K


def per_keyword(
    scores_NK: np.ndarray, truth_NK: np.ndarray, keywords: Sequence[str]
) -> list[dict[str, Any]]:
    """Average precision and number of images of each keyword."""
    precision_K = average_precisions(scores_NK, truth_NK)
    return [
        {
            "keyword": keyword,
            "images": int(truth_NK[:, index].sum()),
            "average_precision": float(precision_K[index]),
        }
        for index, keyword in enumerate(keywords)
    ]
