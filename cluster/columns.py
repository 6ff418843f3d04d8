"""Tables of text that fit a terminal: nothing is cut; what is too long for its column is wrapped."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Sequence
from itertools import zip_longest

GAP = 2  # blanks between columns


def in_columns(
    head: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    width: int | None = None,
) -> str:
    """The lines under their header.

    Args:
        head: a name for each column.
        lines: of as many cells each.
        right: numbers of the columns that are set to the right, counted from 0.
        width: characters of a line at most; None for those of the terminal. A column keeps at least one.
    """
    table = [head, *lines]
    widths = _widths(list(zip(*table, strict=True)), width or shutil.get_terminal_size().columns)
    shown = [line for cells in table for line in _set(cells, widths, right)]
    num_head = len(_set(head, widths, right))
    rule = "─" * (sum(widths) + GAP * (len(widths) - 1))
    return "\n".join([*shown[:num_head], rule, *shown[num_head:]])


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """As wide as the longest cell; where there is no room for that, words are broken last."""
    widths = [max(map(len, cells)) for cells in columns]
    words = [max(len(word) for cell in cells for word in cell.split() or [""]) for cells in columns]
    room -= GAP * (len(widths) - 1)
    while sum(widths) > room and max(widths) > 1:
        breakable = [index for index, width in enumerate(widths) if width > words[index]]
        widest = max(breakable or range(len(widths)), key=lambda index: widths[index])
        widths[widest] -= 1
    return widths


def _set(cells: Sequence[str], widths: Sequence[int], right: Collection[int]) -> list[str]:
    parts = [textwrap.wrap(cell, max(1, width)) for cell, width in zip(cells, widths, strict=True)]
    lines = []
    for line in zip_longest(*parts, fillvalue="") if any(parts) else [[""] * len(cells)]:
        placed = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append((" " * GAP).join(placed).rstrip())
    return lines
