"""Line charts as SVG, made by pure functions: the same numbers give the same text.

They have no colours of their own: the page's style sheet gives them, for light and dark. Without scripts a
chart answers the pointer: over each point lies a strip that shows its
value when it is hovered over or touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pretrain.reporting.elements import element
from pretrain.reporting.numbers import log_ticks, short, tick_texts, ticks

WIDTH, HEIGHT = 300.0, 168.0
LEFT, RIGHT, TOP, BOTTOM = 42.0, 8.0, 16.0, 24.0
MAX_POINTS, MAX_HOVERED, MAX_DOTS = 240, 48, 24


@dataclass(frozen=True)
class Line:
    """One line of a chart; a value that is None or not finite is a gap.
    `name` is what its values are called.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]


@dataclass(frozen=True)
class Mark:
    """Something to see at a value of the x axis (`x`), or at a height (`y`), with its text."""

    text: str
    x: float | None = None
    y: float | None = None


@dataclass(frozen=True)
class Frame:
    """Where numbers lie in the image."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    log: bool

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high, at = (math.log(v) for v in (self.y_low, self.y_high, value)) if self.log else (
            self.y_low, self.y_high, value,
        )  # fmt: skip
        return HEIGHT - BOTTOM - (at - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    x_name: str = "step",
    text: Callable[[float], str] = short,
    fractions: bool = False,
    log: bool = False,
    bounds: tuple[float | None, float | None] = (None, None),
    marks: Sequence[Mark] = (),
    smooth: bool = False,
) -> Markup:
    """A chart of one to three lines over one x axis.

    Args:
        lines: nothing is drawn for a line without points.
        label: what a screen reader says about the chart.
        text: writes a value, when it is pointed at.
        fractions: values are fractions of one, and the axis counts in percent.
        log: a logarithmic y axis, when all values are above 0.
        bounds: what the y axis must reach to at least, below and above.
        marks: restarts, chance levels and the like.
        smooth: draws a running mean over a noisy line.
    """
    seen = [(line, points) for line in lines if (points := _points(line))]
    drawn = [points for _, points in seen]
    if not drawn:
        return element("p", "Nothing has been logged yet.", class_="empty")
    log = log and all(y > 0 for points in drawn for _, y in points)
    frame = _frame(drawn, bounds, marks, log)
    parts = [_axes(frame, x_name, fractions)]
    parts += [_mark(mark, frame) for mark in marks]
    for number, points in enumerate(drawn, 1):
        parts.append(
            _curve(thinned(points, MAX_POINTS), frame, number, faint=smooth and len(points) > MAX_DOTS)
        )
        if smooth and len(points) > MAX_DOTS:
            parts.append(_curve(thinned(running_mean(points), MAX_POINTS), frame, number))
    parts.append(_hovered([line.name for line, _ in seen], drawn, frame, x_name, text))
    return element(
        "svg", *parts, viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", class_="chart", role="img", aria_label=label,
    )  # fmt: skip


def sparkline(ys: Sequence[float | None], *, label: str) -> Markup:
    """A line of nothing but its shape, for a space of a few letters' height."""
    points = _points(Line("", list(range(len(ys))), ys))
    if len(points) < 2:
        return Markup("")
    low, high = min(y for _, y in points), max(y for _, y in points)
    height = max(high - low, 1e-12)
    last = points[-1][0] or 1.0
    path = "".join(
        f"{'ML'[index > 0]}{x / last * 96 + 2:.1f} {26 - (y - low) / height * 22:.1f}"
        for index, (x, y) in enumerate(thinned(points, 80))
    )
    return element(
        "svg", element("path", d=path, class_="line line1"), viewBox="0 0 100 28", class_="spark",
        role="img",
        aria_label=label,
    )  # fmt: skip


def thinned(points: Sequence[tuple[float, float]], max_points: int) -> list[tuple[float, float]]:
    """At most about `max_points` points that keep the look of a line: the lowest and the highest of each
    stretch, and both ends.
    """
    if len(points) <= max_points:
        return list(points)
    size = len(points) / max(1, max_points // 2)
    kept = {0, len(points) - 1}
    for stretch in range(max(1, max_points // 2)):
        part = range(int(stretch * size), min(len(points), int((stretch + 1) * size)))
        if part:
            kept.add(min(part, key=lambda index: points[index][1]))
            kept.add(max(part, key=lambda index: points[index][1]))
    return [points[index] for index in sorted(kept)]


def running_mean(
    points: Sequence[tuple[float, float]], window: int | None = None
) -> list[tuple[float, float]]:
    """The mean of each point and its neighbours, `window` points in all (a
    twelfth of them, when it is not said).
    """
    half = (window or max(3, len(points) // 12)) // 2
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    means = []
    for index, (x, _) in enumerate(points):
        # even on both sides, so that the ends are not drawn inwards
        reach = min(half, index, len(points) - 1 - index)
        low, high = index - reach, index + reach + 1
        means.append((x, (sums[high] - sums[low]) / (high - low)))
    return means


def _points(line: Line) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(line.xs, line.ys) if y is not None and math.isfinite(y)]


def _frame(
    drawn: Sequence[Sequence[tuple[float, float]]],
    bounds: tuple[float | None, float | None],
    marks: Sequence[Mark],
    log: bool,
) -> Frame:
    xs = [x for points in drawn for x, _ in points]
    ys = [y for points in drawn for _, y in points]
    ys += [mark.y for mark in marks if mark.y is not None and (mark.y > 0 or not log)]
    ys += [bound for bound in bounds if bound is not None and (bound > 0 or not log)]
    x_low, x_high = min(xs), max(xs)
    if x_high <= x_low:
        x_low, x_high = x_low - 1, x_high + 1
    low, high = min(ys), max(ys)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        reach = abs(low) * 0.1 or 0.5
        low, high = (low / 2, high * 2) if log else (low - reach, high + reach)
    elif log:
        low, high = low / 1.1, high * 1.1
    else:
        # a little air, but not beyond a bound that was asked for
        air = 0.06 * (high - low)
        low = low if bounds[0] is not None and low >= bounds[0] else low - air
        high = high if bounds[1] is not None and high <= bounds[1] else high + air
    return Frame(x_low, x_high, low, high, log)


def _axes(frame: Frame, x_name: str, fractions: bool) -> Markup:
    parts = []
    y_ticks = log_ticks(frame.y_low, frame.y_high) if frame.log else ticks(frame.y_low, frame.y_high)
    y_texts = (
        [f"{words} %" for words in tick_texts([100 * tick for tick in y_ticks])]
        if fractions
        else tick_texts(y_ticks)
    )
    for value, words in zip(y_ticks, y_texts):
        y = frame.y(value)
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(element("text", words, x=LEFT - 6, y=y + 3.5, text_anchor="end"))
    x_ticks = ticks(frame.x_low, frame.x_high, 5)
    texts = tick_texts(x_ticks)
    room = WIDTH - RIGHT - 8 - 6 * len(x_name)  # the last stretch belongs to the axis's name
    for value, words in zip(x_ticks, texts):
        if frame.x(value) + 3 * len(words) <= room:
            parts.append(element("text", words, x=frame.x(value), y=HEIGHT - 8, text_anchor="middle"))
    parts.append(element("text", x_name, x=WIDTH - RIGHT, y=HEIGHT - 8, text_anchor="end", class_="axis"))
    return element("g", *parts)


def _curve(
    points: Sequence[tuple[float, float]], frame: Frame, number: int, *, faint: bool = False
) -> Markup:
    points_xy = [(frame.x(x), frame.y(y)) for x, y in points]
    path = "".join(f"{'ML'[index > 0]}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(points_xy))
    parts = [element("path", d=path, class_=f"line line{number}" + (" faint" if faint else ""))]
    if len(points_xy) <= MAX_DOTS:
        parts += [element("circle", cx=x, cy=y, r=2.4, class_=f"dot dot{number}") for x, y in points_xy]
    return element("g", *parts)


def _mark(mark: Mark, frame: Frame) -> Markup:
    if mark.x is not None:
        x = min(max(frame.x(mark.x), LEFT), WIDTH - RIGHT)
        strip = element(
            "rect", element("title", mark.text), x=x - 4, y=TOP, width=8, height=HEIGHT - TOP - BOTTOM
        )
        return element("g", element("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM), strip, class_="mark")
    assert mark.y is not None
    if frame.log and mark.y <= 0:
        return Markup("")
    y = frame.y(mark.y)
    words = element(
        "text", mark.text, x=WIDTH - RIGHT - 2, y=y - 4 if y > TOP + 14 else y + 12, text_anchor="end"
    )
    return element("g", element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y), words, class_="mark level")


def _hovered(
    names: Sequence[str],
    drawn: Sequence[Sequence[tuple[float, float]]],
    frame: Frame,
    x_name: str,
    text: Callable[[float], str],
) -> Markup:
    """A strip for each of some points of the first line, which shows the values of all lines there."""
    base = drawn[0]
    stride = max(1, math.ceil(len(base) / MAX_HOVERED))
    chosen = [base[index] for index in range(len(base) - 1, -1, -stride)][::-1]
    centres = [frame.x(x) for x, _ in chosen]
    parts = []
    for index, (x, _) in enumerate(chosen):
        left = LEFT if index == 0 else (centres[index - 1] + centres[index]) / 2
        right = WIDTH - RIGHT if index == len(chosen) - 1 else (centres[index] + centres[index + 1]) / 2
        dots, words = [], [f"{x_name} {short(x, 7)}"]
        for number, (name, points) in enumerate(zip(names, drawn), 1):
            y = min(points, key=lambda point: abs(point[0] - x))[1]
            dots.append(
                element("circle", cx=centres[index], cy=frame.y(y), r=3.4, class_=f"dot dot{number}")
            )
            words.append(f"{name} {text(y)}" if len(names) > 1 else text(y))
        at_right = centres[index] > (LEFT + WIDTH - RIGHT) / 2
        tip = element(
            "g",
            element("line", x1=centres[index], x2=centres[index], y1=TOP, y2=HEIGHT - BOTTOM),
            *dots,
            element(
                "text", " · ".join(words), x=centres[index] + (-7 if at_right else 7), y=TOP - 3,
                text_anchor="end" if at_right else "start",
            ),
            class_="tip",
        )  # fmt: skip
        strip = element("rect", x=left, y=0.0, width=max(right - left, 0.1), height=HEIGHT - BOTTOM)
        parts.append(element("g", strip, tip, class_="point"))
    return element("g", *parts)
