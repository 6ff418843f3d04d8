"""Text as words, in any language: what captions are compared by, and what keywords are mined from.

Text is lower-cased and NFC. For languages with spaces the words are those that the COCO caption evaluation's
PTBTokenizer gives with its list of punctuation removed: hyphens and decimal points stay inside a word,
`don't` is `do n't` and `man's` is `man 's`. Chinese, Japanese, Thai, Lao, Khmer and Burmese have no spaces
between words: there a character (with its marks) is a word,
as is the custom of Chinese captioning benchmarks.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache

# scripts without spaces between words: Thai and Lao, Burmese, Khmer, kana, Han
_UNSPACED = (
    *("\u0e00-\u0eff", "\u1000-\u109f", "\u1780-\u17ff", "\u3040-\u30ff", "\u31f0-\u31ff", "\u3400-\u4dbf"),
    *("\u4e00-\u9fff", "\uf900-\ufaff", "\uff66-\uff9f", "\U00020000-\U0003134f"),
)
_SIGNS = "&%$#@+=*"  # the PTBTokenizer keeps these
_CONTRACTION = re.compile(r"(.+?)(n't|'(?:s|re|ve|ll|d|m))")


def clean(text: str) -> str:
    """NFC, with single blanks and none around."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def words_of(text: str) -> list[str]:
    """The words of a text, without punctuation."""
    return [word for words, _ in _runs(text) for word in words]


def stretches_of(text: str) -> list[list[str]]:
    """The words of a text as lists of those that follow each other without punctuation between."""
    stretches: list[list[str]] = []
    for words, follows in _runs(text):
        if follows and stretches:
            stretches[-1].extend(words)
        else:
            stretches.append(words)
    return stretches


def is_unspaced(word: str) -> bool:
    """Whether a word is a character of a script without spaces."""
    return _characters().match(word) is not None


def _runs(text: str) -> Iterator[tuple[list[str], bool]]:
    """The words of a text, neighbouring characters without spaces as one list; with whether there is no more
    than blanks between them and the ones before."""
    text, end = unicodedata.normalize("NFC", text.lower()).replace("\u2019", "'"), 0
    for match in _pattern().finditer(text):
        found, follows = match.group(), not text[end : match.start()].strip()
        end = match.end()
        if match.lastgroup == "unspaced":
            yield _characters().findall(found), follows
        elif "'" in found and (parts := _CONTRACTION.fullmatch(found)):
            yield list(parts.groups()), follows
        else:
            yield [found], follows


@cache
def _marks() -> str:
    """Every combining mark, for a class of characters: they belong to the letter before."""
    return "".join(
        re.escape(chr(code))
        for code in range(0x300, min(sys.maxunicode, 0x20000))
        if unicodedata.category(chr(code)).startswith("M")
    )


@cache
def _pattern() -> re.Pattern[str]:
    unspaced, marks = "".join(_UNSPACED), _marks()
    letter = rf"(?:(?![{unspaced}])[^\W_]|[{marks}])"
    inside = r"(?:[-']|(?<=\d)[.,](?=\d))"
    return re.compile(
        rf"(?P<unspaced>(?:[{unspaced}][{marks}]*)+)|(?P<word>{letter}+(?:{inside}{letter}+)*)|(?P<sign>[{_SIGNS}])"
    )


@cache
def _characters() -> re.Pattern[str]:
    return re.compile(rf"[{''.join(_UNSPACED)}][{_marks()}]*")
