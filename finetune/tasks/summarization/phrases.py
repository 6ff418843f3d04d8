"""Terms of a text: words, and several words that are one (`fire hydrant`, `xe đạp`,
the characters of a Chinese word).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from finetune.tasks.summarization.words import is_unspaced, stretches_of

MAX_WORDS, MAX_CHARACTERS = 3, 4  # of a phrase, where words are spaced and where characters are words

Phrase = tuple[str, ...]


class Phrases:
    """Reads texts as terms, given which neighbouring words are one;
    a longer phrase goes before a shorter one.

    Args:
        phrases: each two words or more.
    """

    def __init__(self, phrases: Iterable[Phrase] = ()) -> None:
        self.all: list[Phrase] = sorted(set(phrases))
        self._known = set(self.all)
        self._longest = max(map(len, self.all), default=1)

    @classmethod
    def of_config(cls, tree: Iterable[Sequence[str]]) -> Phrases:
        """What `to_json` gave."""
        return cls(tuple(phrase) for phrase in tree)

    def to_json(self) -> list[list[str]]:
        """All of them."""
        return [list(phrase) for phrase in self.all]

    def parts(self, stretch: Sequence[str]) -> list[Phrase]:
        """Words that follow each other, those that are one together."""
        found, start = [], 0
        while start < len(stretch):
            for length in range(min(self._longest, len(stretch) - start), 0, -1):
                part = tuple(stretch[start : start + length])
                if length == 1 or part in self._known:
                    found.append(part)
                    start += length
                    break
        return found

    def terms_in(self, stretches: Iterable[Sequence[str]]) -> list[str]:
        """The terms of stretches, in their order, words that cannot be keywords among them."""
        return [joined(part) for stretch in stretches for part in self.parts(stretch)]

    def terms_of(self, text: str) -> set[str]:
        """What may be keywords of a text."""
        return {term for term in self.terms_in(stretches_of(text)) if is_term(term)}


def possible(words: Phrase) -> bool:
    """Whether words may be one: all of letters, all with or all without spaces between, and not too many."""
    unspaced = is_unspaced(words[0])
    return len(words) <= (MAX_CHARACTERS if unspaced else MAX_WORDS) and all(
        is_unspaced(word) == unspaced and "'" not in word and any(map(str.isalpha, word)) for word in words
    )


def joined(words: Sequence[str]) -> str:
    """The term as it is written."""
    return ("" if is_unspaced(words[0]) else " ").join(words)


def is_term(term: str) -> bool:
    """Whether a term may be a keyword: two letters and more, and no part of a contraction,
    or characters without spaces.
    """
    return is_unspaced(term) or (sum(map(str.isalpha, term)) >= 2 and "'" not in term)


def phrase_of(term: str) -> Phrase:
    """The words of a term."""
    return tuple(word for stretch in stretches_of(term) for word in stretch)
