"""Keywords mined from captions, in any language, without word lists.

Three questions are asked of a sample of the captions, in this order:

1. Which words say something of their image? Where images have several captions: those that the captions of
   an image agree on beyond chance (Cohen's kappa above what is called slight,
   https://doi.org/10.2307/2529310). Where they have one: those with words of their own kind around them.
   What stands at a distance from `and` is a mixture of all words, at a distance from `dog` it is not (the
   divergence that finds stop words in Lo, He & Ounis 2005; the distance leaves out grammar).
2. Which neighbouring words are one term (`fire hydrant`, `xe đạp`, and the characters of a Chinese word)?
   Those whose normalised pointwise mutual information (Bouma 2009) is high and whose log-likelihood ratio
   (Dunning 1993, https://aclanthology.org/J93-1003) is beyond chance; in two rounds, as word2phrase does
   (https://arxiv.org/abs/1310.4546). These must say something of their image, too.
3. Which of all these are frequent? They are the keywords.

Time is linear in the captions up to `MAX_IMAGES`, and bounded beyond.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice, pairwise

import numpy as np

from finetune.tasks.summarization.phrases import Phrase, Phrases, is_term, joined, phrase_of, possible
from finetune.tasks.summarization.words import stretches_of

MAX_IMAGES = 20_000  # studied at most, evenly over the data; numbers of images are scaled up
# -- terms of several words
MIN_PAIRS = 5  # fewer occurrences say nothing
# normalised pointwise mutual information: 0 by chance, 1 for words that never stand apart;
# with a word of grammar it is more
MIN_ASSOCIATION, MIN_WITH_GRAMMAR = 0.65, 0.75
# fraction of the rarer word's occurrences that are beside the other; words combine freely, halves do not
MIN_BOUND = 0.7
MIN_LIKELIHOOD_RATIO = 24.0  # chi-square of one degree of freedom at 1e-6: millions of pairs are tested
# -- terms that say something
MIN_AGREEMENT = 0.2  # Cohen's kappa; up to it agreement is called slight
MIN_FRACTION_AGREED = 0.1  # of the terms; where fewer agree, captions are no versions of each other
MIN_TOPIC = 0.1  # nats; where terms with a topic tell less of their neighbours, captions have none
MIN_FRACTION_OF_TOPIC = 0.55  # of what a term with a topic (the upper quartile) tells of the words around it
NEAR, FAR = 2, 20  # words nearer than this are grammar, farther ones another matter
MIN_CONTEXT = 60  # words around a term, in all captions, from which it can be examined
# most frequent terms that are examined, and that contexts are told apart by
NUM_EXAMINED, NUM_CONTEXTS = 2000, 500

Images = Sequence[Sequence[Sequence[str]]]
"""Of each image the terms of each caption, in their order."""

_END = -1  # of a stretch of words without punctuation between
_NEXT = -2  # of a caption


class CaptionSample:
    """Captions of at most `max_images` images, every n-th of all that were added, n a power of two.

    Attributes:
        num_images: with a caption, added so far.
    """

    def __init__(self, max_images: int = MAX_IMAGES) -> None:
        self.num_images, self._max_images, self._stride = 0, max_images, 1
        self._images: list[array[int]] = []
        self._ids: dict[str, int] = {}
        self.words: list[str] = []

    def add(self, captions: Sequence[str]) -> None:
        """Takes note of the captions of an image, none of which are nothing."""
        if not captions:
            return
        if self.num_images % self._stride == 0:
            if len(self._images) == self._max_images:
                self._images, self._stride = self._images[::2], 2 * self._stride
            if self.num_images % self._stride == 0:
                self._images.append(self._encoded(captions))
        self.num_images += 1

    def _encoded(self, captions: Sequence[str]) -> array[int]:
        ids = array("i")
        for caption in captions:
            for stretch in stretches_of(caption):
                for word in stretch:
                    number = self._ids.setdefault(word, len(self.words))
                    if number == len(self.words):
                        self.words.append(word)
                    ids.append(number)
                ids.append(_END)
            ids.append(_NEXT)
        return ids

    @property
    def scale(self) -> float:
        """Images in the data for one in the sample."""
        return self.num_images / max(1, len(self._images))

    def images(self) -> Iterator[list[list[list[str]]]]:
        """Of each image its captions, of each caption its stretches of words."""
        for ids in self._images:
            captions: list[list[list[str]]] = []
            stretches: list[list[str]] = []
            stretch: list[str] = []
            for number in ids:
                if number >= 0:
                    stretch.append(self.words[number])
                elif number == _END:
                    stretches.append(stretch)
                    stretch = []
                else:
                    captions.append(stretches)
                    stretches = []
            yield captions


def phrases_in(sample: CaptionSample, grammar: Container[str] = ()) -> Phrases:
    """The terms of several words; words of `grammar` are part of one
    only when they are hardly ever apart.
    """
    phrases = Phrases()
    for _ in range(2):
        streams = (phrases.parts(stretch) for image in sample.images() for said in image for stretch in said)
        found = _associated(streams, grammar)
        if not found:
            break
        phrases = Phrases([*phrases.all, *found])
    return phrases


def _associated(streams: Iterable[Sequence[Phrase]], grammar: Container[str]) -> list[Phrase]:
    """Neighbours that are one, sorted."""
    counts: Counter[Phrase] = Counter()
    pairs: Counter[tuple[Phrase, Phrase]] = Counter()
    num_all = 0
    for stream in streams:
        num_all += len(stream)
        pairs.update(pairwise(stream))
        counts.update(stream)
    found = []
    for (first, second), both in pairs.items():
        one, other = counts[first], counts[second]
        if (
            both < max(MIN_PAIRS, MIN_BOUND * min(one, other))
            or first == second
            or not possible(first + second)
        ):
            continue
        min_association = (
            MIN_WITH_GRAMMAR if joined(first) in grammar or joined(second) in grammar else MIN_ASSOCIATION
        )
        association = math.log(both * num_all / (one * other)) / -math.log(both / num_all)
        if (
            association >= min_association
            and _likelihood_ratio(both, one, other, num_all) >= MIN_LIKELIHOOD_RATIO
        ):
            found.append(first + second)
    return sorted(found)


def _likelihood_ratio(both: int, one: int, other: int, num_all: int) -> float:
    """Dunning's, of a table of two by two: how often words follow each other,
    given how often there are any.
    """
    table = ((both, one - both), (other - both, num_all - one - other + both))
    total = 0.0
    for row, of_row in zip(table, (one, num_all - one), strict=True):
        for seen, of_column in zip(row, (other, num_all - other), strict=True):
            if seen > 0:
                total += seen * math.log(seen * num_all / (of_row * of_column))
    return 2 * total


def mine(
    sample: CaptionSample,
    *,
    num_keywords: int,
    min_images: int,
    max_fraction: float,
    stop_words: Sequence[str] = (),
) -> tuple[list[str], Phrases]:
    """The keywords, sorted, and the phrases by which captions are read for them.

    Args:
        sample: of the captions.
        num_keywords: at most, the most frequent ones.
        min_images: that a keyword occurs in.
        max_fraction: of the images that have a caption; terms in more of them say nothing.
        stop_words: further terms that are none.
    """
    alone = [[[word for stretch in said for word in stretch] for said in image] for image in sample.images()]
    words = dict(islice(_frequent(alone, min_images=2).items(), NUM_EXAMINED))
    telling = _telling(alone, [word for word, count in words.items() if count <= max_fraction * len(alone)])
    phrases = phrases_in(sample, words.keys() - telling)

    images = [[phrases.terms_in(said) for said in image] for image in sample.images()]
    left_out = {joined(part) for text in stop_words for part in _stop_terms(text, phrases)}
    candidates = [
        term
        for term, count in _frequent(images, min_images=min_images / sample.scale).items()
        if count <= max_fraction * len(images)
        and is_term(term)
        and term not in left_out
        and (term in telling or term not in words)  # a rare word cannot be told, nor a phrase by its words
    ][: max(NUM_EXAMINED, num_keywords)]
    of_several = {term for term in candidates if term not in words and len(phrase_of(term)) > 1}
    dull = of_several - _telling(images, candidates)
    return sorted([term for term in candidates if term not in dull][:num_keywords]), phrases


def _frequent(images: Images, *, min_images: float) -> dict[str, int]:
    """The terms of at least so many images with their numbers, the most frequent first."""
    counts = Counter(term for image in images for term in set().union(*image))
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return {term: count for term, count in ranked if count >= min_images}


def _stop_terms(text: str, phrases: Phrases) -> Iterator[Phrase]:
    for stretch in stretches_of(text):
        yield tuple(stretch)
        yield from phrases.parts(stretch)


def _telling(images: Images, candidates: Sequence[str]) -> set[str]:
    """The candidates that say something of their image, and those of which that cannot be told."""
    agreed = _agreed(images, candidates)
    # captions in several languages, or of one thing each, do not agree whatever they say
    return agreed if len(agreed) >= MIN_FRACTION_AGREED * len(candidates) else _topical(images, candidates)


def _agreed(images: Images, candidates: Sequence[str]) -> set[str]:
    """Those that another caption of the same image has too, more often than by chance."""
    captions_with: Counter[str] = Counter()
    others: Counter[str] = Counter()
    agreeing: defaultdict[str, float] = defaultdict(float)
    num_captions = 0
    for image in images:
        num_captions += len(image)
        of_image = Counter(term for said in image for term in set(said))
        captions_with.update(of_image)
        for term, count in of_image.items():
            if len(image) > 1:
                others[term] += count
                agreeing[term] += count * (count - 1) / (len(image) - 1)
    found = set()
    for term in candidates:
        chance = captions_with[term] / num_captions
        if (
            others[term]
            and chance < 1
            and (agreeing[term] / others[term] - chance) / (1 - chance) > MIN_AGREEMENT
        ):
            found.add(term)
    return found


def _topical(images: Images, candidates: Sequence[str]) -> set[str]:
    """Those with other words around them than words have by chance, and those that are too rare to tell."""
    told = divergences(images, candidates)
    known = [nats for nats in told.values() if nats is not None]
    topic = float(np.quantile(known, 0.75)) if known else 0.0
    min_information = MIN_FRACTION_OF_TOPIC * topic if topic >= MIN_TOPIC else -math.inf
    return {term for term, nats in told.items() if nats is None or nats > min_information}


def divergences(images: Images, candidates: Sequence[str]) -> dict[str, float | None]:
    """What each candidate tells of the words `NEAR` to `FAR` from it:
    nats for each of them, without what chance tells.

    None for a candidate with too few words around it.
    """
    counts = Counter(term for image in images for said in image for term in said)
    contexts = [
        term for term, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:NUM_CONTEXTS]
    ]
    row_of, column_of = (
        {term: index for index, term in enumerate(terms)} for terms in (candidates, contexts)
    )
    longest = max((len(said) for image in images for said in image), default=0)
    rows: list[int] = []
    columns: list[int] = []
    for image in images:
        for said in image:
            rows += [row_of.get(term, -1) for term in said] + [-1] * FAR
            columns += [column_of.get(term, -1) for term in said] + [-1] * FAR
    row_N, column_N = np.array(rows, np.int64), np.array(columns, np.int64)
    seen = np.zeros(len(candidates) * len(contexts))
    for distance in range(NEAR + 1, min(FAR, longest) + 1):
        for row, column in (
            (row_N[:-distance], column_N[distance:]),
            (row_N[distance:], column_N[:-distance]),
        ):
            both = (row >= 0) & (column >= 0)
            seen += np.bincount(row[both] * len(contexts) + column[both], minlength=len(seen))
    seen_KC = seen.reshape(len(candidates), len(contexts))
    for term, own in row_of.items():
        if term in column_of:
            seen_KC[own, column_of[term]] = 0  # whether it comes twice is no matter of its topic
    all_C = seen_KC.sum(0)
    return {term: _excess(seen_KC[own], all_C) for term, own in row_of.items()}


def _excess(seen_C: np.ndarray, all_C: np.ndarray) -> float | None:
    total = seen_C.sum()
    if total < MIN_CONTEXT:
        return None
    there = all_C > 0
    expected_C = all_C[there] / all_C[there].sum() * total
    own_C = seen_C[there]
    some = own_C > 0
    likelihood = float((own_C[some] * np.log(own_C[some] / expected_C[some])).sum())
    # chance makes up half a nat for each context that could have been seen
    degrees = float(np.minimum(expected_C, 1).sum()) - 1
    return (likelihood - degrees / 2) / float(total)
