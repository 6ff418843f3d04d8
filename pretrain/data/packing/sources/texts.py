"""Text out of annotation files: its encoding, labels, lists written as text, captions."""

from __future__ import annotations

import codecs
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

# what programs write where there is nothing; a label of a class of that name is said, for it could be one
NOTHING = frozenset({"nan", "NaN", "NAN", "None", "null", "NULL", "<NA>"})
# fields in which captions stand, of those who write objects in place of texts
CAPTION_FIELDS = (
    "raw",
    "caption",
    "text",
    "sentence",
    "value",
    "description",
    "captions",
    "texts",
    "sentences",
)
MAX_LIST_TEXT = 2**16
MARKS = (  # those of UTF-32 begin as those of UTF-16 do
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ITEM = re.compile(
    r"""\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|([^\s,'"\[\](){}]+))\s*(,|(?=\]|\s|$))"""
)


def encoding_of(data: bytes) -> str:
    """What the first bytes of a text, 5 or more, say: `utf-16` or `utf-32` by a byte order mark,
    else `utf-8-sig`.
    """
    for mark, encoding in MARKS:
        if data.startswith(mark) and len(data) > len(mark):
            return encoding
    return "utf-8-sig"


def decode_text(data: bytes) -> tuple[str, str]:
    """(text, name of the encoding): UTF-16 or 32 where a byte order mark says so, else UTF-8,
    else Windows' Latin letters.

    Nothing is replaced: a byte that no rule can read raises ValueError.
    """
    encoding = encoding_of(data)
    if encoding != "utf-8-sig":
        try:
            return data.decode(encoding), encoding
        except UnicodeDecodeError as error:
            raise ValueError(
                f"not {encoding.upper()} text, as its first bytes say (byte {error.start})"
            ) from error
    try:
        return data.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError as first:
        if b"\0" in data:
            raise ValueError(f"not UTF-8 text (byte {first.start})") from first
        try:
            return data.decode("cp1252"), "cp1252"
        except UnicodeDecodeError as error:
            raise ValueError(f"neither UTF-8 nor Windows-1252 text (byte {error.start})") from error


def decode_lines(data: bytes) -> tuple[str, str]:
    """As `decode_text`; but of UTF-8 with some bad bytes each of these is a
    lone surrogate (see `has_bad_bytes`).

    Letters of several bytes that are right tell such a file from one in Windows' Latin letters,
    in which there are hardly any.
    """
    if not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-8-sig", "surrogateescape")
        num_bad = len(_BAD_BYTES.findall(text))
        num_letters = len(text) - len(text.encode("ascii", "ignore"))
        if num_letters >= 2 * num_bad:
            return text, "utf-8"
    return decode_text(data)


def has_bad_bytes(text: str) -> bool:
    """Whether a text that `decode_lines` gave holds bytes that are not UTF-8."""
    return not text.isascii() and _BAD_BYTES.search(text) is not None


_BAD_BYTES = re.compile("[\udc80-\udcff]")


def clean(text: str) -> str:
    """NFC without blanks around."""
    return unicodedata.normalize("NFC", text).strip()


def is_nothing(value: Any) -> bool:
    """Whether a cell is empty: null, blank, or a NaN."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def label_of(value: Any) -> str | None:
    """A label as text: NFC, no blanks around it; None for what is no label."""
    if is_nothing(value) or isinstance(value, dict | list):
        return None
    text = clean(str(value))
    return None if text in NOTHING else text


def list_in(text: str) -> list[str] | None:
    """The items of a list as text, `["a", "b"]`, `['a', 'b']` or numpy's `['a' 'b']`; None for no list."""
    text = text.strip()
    if not (text.startswith(("[", "(")) and text.endswith(("]", ")"))) or len(text) > MAX_LIST_TEXT:
        return None
    try:
        found = json.loads(text)
        if isinstance(found, list) and all(
            isinstance(item, str | int | float) or item is None for item in found
        ):
            return [str(item) for item in found if item is not None]
        return None
    except (ValueError, RecursionError):
        pass
    items, position, inner = [], 0, text[1:-1]
    while position < len(inner) and inner[position:].strip():
        match = _ITEM.match(inner, position)
        if match is None:
            return None
        double, single, bare, _ = match.groups()
        quoted = double if double is not None else single
        items.append(re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare)
        position = match.end()
    return items


def captions_in(value: Any) -> tuple[list[str], int]:
    """(captions, how many there are that cannot be read) of a cell or a JSON value; blank ones are neither.

    Texts, lists of texts, objects with one of `CAPTION_FIELDS`,
    and texts by language ({"en": ..., "de": ...}) are read.
    """
    if is_nothing(value):
        return [], 0
    if isinstance(value, str):
        return [clean(value)], 0
    if isinstance(value, list):
        parts = [captions_in(item) for item in value]
        return list(dict.fromkeys(text for texts, _ in parts for text in texts)), sum(
            bad for _, bad in parts
        )
    if isinstance(value, dict):
        for field in CAPTION_FIELDS:
            if field in value and not isinstance(value[field], int | float):
                return captions_in(value[field])
        if (
            value
            and all(isinstance(text, str) for text in value.values())
            and all(len(str(key)) <= 7 for key in value)
        ):
            return captions_in(list(value.values()))
    return [], 1


def variants(counts: Counter[str]) -> list[str]:
    """Notes on labels that may be one class in several spellings: cases, numbers (1, 1.0, True), nothing."""
    notes = []
    for what, key in (("differ in case only", str.casefold), ("may be one number", _as_number)):
        groups: dict[str, list[str]] = {}
        for label in counts:
            groups.setdefault(key(label), []).append(label)
        for alike in sorted(group for group in groups.values() if len(group) > 1):
            if key is str.casefold or any(_as_number(label) != label for label in alike):
                shown = ", ".join(f"{label!r} {counts[label]}" for label in sorted(alike))
                notes.append(
                    f"labels that {what} are kept apart: {shown}; write them alike if they are one class"
                )
    return notes


def _as_number(label: str) -> str:
    if label in ("True", "true", "TRUE"):
        return "1"
    if label in ("False", "false", "FALSE"):
        return "0"
    try:
        number = float(label)
    except ValueError:
        return label
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else str(number)


def id_key(value: Any) -> str | None:
    """An id for comparison: 1, 1.0 and "1" are one; None for what cannot be an id."""
    if isinstance(value, bool) or value is None or isinstance(value, dict | list):
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    text = str(value).strip()
    if re.fullmatch(r"-?\d+\.0+", text):
        text = text.partition(".")[0]
    return text or None


def shown(words: Iterable[Any], max_words: int = 5) -> str:
    """The first few of many words, and how many more there are."""
    listed: Sequence[Any] = list(words)
    more = f" and {len(listed) - max_words} more" if len(listed) > max_words else ""
    return ", ".join(map(str, listed[:max_words])) + more


def none_read(what: str, first: str) -> str:
    """Why an image is not packed of whose boxes each is damaged, `first` in this way."""
    return f"none of its {what} can be read ({first}); it would look like an image without any"
