"""How numbers are written, and where the ticks of an axis are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

SUFFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float | None, digits: int = 3) -> str:
    """A number for people: so many digits that count, thousands apart, no zeros behind the point.
    None and NaN are a dash.
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10 ** max(digits, 3):
        return _minus(f"{value:,.0f}")
    if size < 1e-4:
        mantissa, exponent = f"{value:.{max(0, digits - 2)}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return _minus(f"{mantissa}e{int(exponent)}")
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    text = f"{value:.{decimals}f}"
    return _minus(text.rstrip("0").rstrip(".") if "." in text else text)


def _minus(text: str) -> str:
    return f"−{text[1:]}" if text.startswith("-") else text


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction of one in percent."""
    return "–" if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.{digits}f} %"


def points(difference: float) -> str:
    """A difference of two fractions in percentage points, with its sign."""
    return _minus(f"{100 * difference:+.1f} points")


def margin(fraction: float, num: int) -> float:
    """Half the width of the 95 % interval of a fraction seen on so many images (Wilson's)."""
    if num <= 0:
        return math.nan
    z = 1.96
    return z / (1 + z * z / num) * math.sqrt(fraction * (1 - fraction) / num + z * z / (4 * num * num))


def ticks(low: float, high: float, max_ticks: int = 5) -> list[float]:
    """Round numbers between two ends, at most `max_ticks` and at least two;
    steps are 1, 2, 2.5 or 5 times a power of ten.
    """
    if not high > low:
        return [low]
    raw = (high - low) / max(1, max_ticks - 1)
    power = 10 ** math.floor(math.log10(raw))
    for step in (power * factor for factor in (1, 2, 2.5, 5, 10, 20, 25, 50)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= max_ticks:
            return [number * step for number in range(first, last + 1)]
    raise AssertionError("a step of fifty times the wanted one is too coarse for any axis")


def log_ticks(low: float, high: float, max_ticks: int = 5) -> list[float]:
    """Powers of ten between two ends above 0, every second or third of them when they are many."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / max_ticks))
    found = [10.0**power for power in range(first, last + 1, stride)]
    return found if len(found) >= 2 else ticks(low, high, max_ticks)


def tick_texts(values: Sequence[float]) -> list[str]:
    """What stands at the ticks of one axis: all with the same number of decimals and the same unit."""
    largest = max((abs(value) for value in values), default=0.0)
    if largest == 0:
        return ["0" for _ in values]
    smallest = min((abs(value) for value in values if value), default=largest)
    if largest >= 1e5 or largest < 1e-3 or largest / smallest > 1e4:
        return [_compact(value) for value in values]
    size, suffix = next(((size, suffix) for size, suffix in SUFFIXES if largest >= 10 * size), (1.0, ""))
    steps = [abs(after - before) / size for before, after in pairwise(values)]
    step = min(steps, default=largest / size)
    decimals = 0
    while decimals < 6 and abs(round(step, decimals) - step) > 1e-6 * step:
        decimals += 1
    return [_minus(f"{value / size:.{decimals}f}{suffix if value else ''}") for value in values]


def _compact(value: float) -> str:
    for size, suffix in SUFFIXES:
        if abs(value) >= size:
            return f"{short(value / size)}{suffix}"
    return short(value, 2)
