"""CIDEr-D, BLEU and ROUGE-L as the COCO caption evaluation defines them (https://arxiv.org/abs/1504.00325).

All take words: one candidate an image, and one or several references. On the same words they equal that
evaluation's own code. It takes words from the Stanford tokenizer, we from `words_of`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

Words = Sequence[str]
NGrams = Counter[tuple[str, ...]]

MAX_N = 4
CIDER_SIGMA, CIDER_SCALE = 6.0, 10.0
ROUGE_BETA = 1.2


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Mean of `cider_d_of_each`, in [0, 10]."""
    scores = cider_d_of_each(candidates, references)
    return sum(scores) / len(scores) if scores else 0.0


def cider_d_of_each(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each image (https://arxiv.org/abs/1411.5726, sigma 6, n-grams of 1 to 4 words, times 10).

    How rare an n-gram is comes from the references given here: its document frequency is the number of
    images with it in one of their references. So a single image has nothing that is rare, and scores 0.
    """
    reference_ngrams = [[_ngrams(reference) for reference in of_image] for of_image in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for of_image in reference_ngrams:
        frequency.update(set().union(*of_image))
    log_images = math.log(max(1, len(references)))

    def weighed(ngrams: NGrams) -> list[dict[tuple[str, ...], float]]:
        by_n: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_N)]
        for ngram, count in ngrams.items():
            by_n[len(ngram) - 1][ngram] = count * (log_images - math.log(max(1, frequency[ngram])))
        return by_n

    scores = []
    for candidate, of_image, words_of_image in zip(candidates, reference_ngrams, references, strict=True):
        vector = weighed(_ngrams(candidate))
        total = 0.0
        for ngrams, words in zip(of_image, words_of_image, strict=True):
            # the evaluation's code takes the number of pairs for the length,
            # which tells no words and one word alike
            apart = max(0, len(candidate) - 1) - max(0, len(words) - 1)
            total += _similarity(vector, weighed(ngrams)) * math.exp(-(apart**2) / (2 * CIDER_SIGMA**2))
        scores.append(CIDER_SCALE * total / len(of_image))
    return scores


def _similarity(
    candidate: list[dict[tuple[str, ...], float]], reference: list[dict[tuple[str, ...], float]]
) -> float:
    """Mean over n of the cosine, the candidate's counts clipped to the reference's."""
    total = 0.0
    for own, other in zip(candidate, reference, strict=True):
        length = math.sqrt(sum(x * x for x in own.values())) * math.sqrt(sum(x * x for x in other.values()))
        product = sum(
            min(value, other.get(ngram, 0.0)) * other.get(ngram, 0.0) for ngram, value in own.items()
        )
        total += product / length if length else product
    return total / MAX_N


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 to BLEU-4 of the whole set (https://aclanthology.org/P02-1040), in [0, 1].

    The length of an image's references is the one closest to its candidate's.
    """
    tiny, small = 1e-15, 1e-9  # the evaluation's own guards against 0 / 0
    right, guessed = [0] * MAX_N, [0] * MAX_N
    length = reference_length = 0
    for candidate, of_image in zip(candidates, references, strict=True):
        most: NGrams = Counter()
        for reference in of_image:
            most |= _ngrams(reference)
        for ngram, count in _ngrams(candidate).items():
            right[len(ngram) - 1] += min(count, most[ngram])
        for n in range(MAX_N):
            guessed[n] += max(0, len(candidate) - n)
        length += len(candidate)
        reference_length += min((abs(len(r) - len(candidate)), len(r)) for r in of_image)[1]
    ratio = (length + tiny) / (reference_length + small)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(MAX_N):
        product *= (right[n] + tiny) / (guessed[n] + small)
        scores.append(product ** (1 / (n + 1)) * brevity)
    return scores


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Mean over images of ROUGE-L (https://aclanthology.org/W04-1013, beta 1.2), in [0, 1].

    Of several references the best precision and the best recall count, as in the evaluation's code.
    """
    scores = []
    for candidate, of_image in zip(candidates, references, strict=True):
        common = [_longest_common(candidate, reference) for reference in of_image]
        precision = max(common) / max(1, len(candidate))
        recall = max(
            length / max(1, len(reference)) for length, reference in zip(common, of_image, strict=True)
        )
        if precision and recall:
            scores.append((1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision))
        else:
            scores.append(0.0)
    return sum(scores) / len(scores) if scores else 0.0


def _ngrams(words: Words) -> NGrams:
    return Counter(_each_ngram(words))


def _each_ngram(words: Words) -> Iterator[tuple[str, ...]]:
    for n in range(1, MAX_N + 1):
        for start in range(len(words) - n + 1):
            yield tuple(words[start : start + n])


def _longest_common(one: Words, other: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for index, other_word in enumerate(other, 1):
            above = row[index]
            row[index] = diagonal + 1 if word == other_word else max(above, row[index - 1])
            diagonal = above
    return row[-1]
