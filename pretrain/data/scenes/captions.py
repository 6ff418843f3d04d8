"""True sentences about the demo's scenes: what is there, how many, on what,
and where the small things lie.
"""

from __future__ import annotations

from collections import Counter

# left, upper, right, lower in pixels; right and lower are the first ones outside
Box = tuple[int, int, int, int]

NUMBERS = ("no", "one", "two", "three")
SHARED = 0.34  # of a side: boxes that share less than this in one direction lie beside each other in it


def noun(kind: str) -> str:
    """What a thing is called: `coin`, `handwritten digit`."""
    return "handwritten digit" if kind == "digit" else kind


def plural(name: str) -> str:
    """Several of them: `coins`, `handwritten digits`."""
    return f"{name}s"


def relation(box: Box, other: Box) -> str | None:
    """Where `box` lies from `other`: `above`, `below` or `beside`, which a mirror leaves true;
    None when none is clear.
    """
    vertical = _side(box[1], box[3], other[1], other[3], "above", "below")
    return vertical or _side(box[0], box[2], other[0], other[2], "beside", "beside")


def _side(start: int, end: int, other_start: int, other_end: int, before: str, after: str) -> str | None:
    """`before` or `after` when one stretch lies beyond the other's end except
    for a small part of its own length.
    """
    shared = SHARED * (end - start)
    if end <= other_start + shared:
        return before
    return after if start >= other_end - shared else None


def listed(phrases: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def captions(things: list[tuple[str, Box]], ground: tuple[str, str]) -> list[str]:
    """Two or more true sentences; the first one is complete.

    Args:
        things: noun and box of each thing, the main object first.
        ground: two ways to say what it is on, for instance ("on grass", "in the grass").
    """
    main, main_box = things[0]
    small = Counter(name for name, _ in things[1:])
    company = [
        f"a {name}" if count == 1 else f"{NUMBERS[count]} {plural(name)}" for name, count in small.items()
    ]
    sentences = [f"a {main} {ground[0]}" + (f" with {listed(company)}" if company else "")]
    for name, box in things[1:]:
        where = relation(box, main_box)
        if where and small[name] == 1:
            sentences.append(f"a {name} {where} a {main}")
            break
    sentences.append(f"a {main} {ground[1]}")
    return sentences
