"""Explanations as images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from pretrain.data.images.heat_maps import overlay
from pretrain.data.images.sheet import SIDE

if TYPE_CHECKING:
    from pretrain.explaining.explainer import Explanation


class Panel(NamedTuple):
    """One image, uint8, with what it is called and a number that says how far to trust its colours."""

    caption: str
    note: str
    pixels_HW3: np.ndarray


class Row(NamedTuple):
    """Images that belong together."""

    title: str
    panels: list[Panel]

    def strip(self, gap: int = 4) -> np.ndarray:
        """The panels side by side, uint8."""
        height = max(panel.pixels_HW3.shape[0] for panel in self.panels)
        parts: list[np.ndarray] = []
        for panel in self.panels:
            short = height - panel.pixels_HW3.shape[0]
            parts += [
                np.pad(panel.pixels_HW3, ((0, short), (0, 0), (0, 0)), constant_values=255),
                np.full((height, gap, 3), 255, np.uint8),
            ]
        return np.concatenate(parts[:-1], axis=1)


def panel_rows(explanation: Explanation) -> list[Row]:
    """The image with its rollout, class maps and features, then a row of heads for each layer."""
    image = _scaled(explanation.pixels_HW3)
    height, width = explanation.pixels_HW3.shape[:2]
    first = [Panel("image", f"{width} x {height}", image)]
    if explanation.rollout_HW is not None:
        first.append(_heat("rollout", image, explanation.rollout_HW))
    first += [
        Panel(f"features, {stage}", f"{colours.shape[1]} x {colours.shape[0]}", _scaled(colours, like=image))
        for stage, colours in explanation.features.items()
    ]
    rows = [Row("overview", first)]
    for method in dict.fromkeys(item.method for item in explanation.classes):
        panels = [
            Panel(f"{item.name} {item.score:.0%}", "", overlay(image, item.heat_HW))
            for item in explanation.classes
            if item.method == method
        ]
        rows.append(Row(method, panels))
    for layer, heads_hHW in explanation.attention.items():
        mean = [_heat("mean", image, heads_hHW.mean(0))]
        rows.append(
            Row(layer, mean + [_heat(f"head {n}", image, heat) for n, heat in enumerate(heads_hHW, 1)])
        )
    return rows


def _heat(caption: str, image_HW3: np.ndarray, heat_HW: np.ndarray) -> Panel:
    # colours run from the lowest to the highest value, so an almost even map needs a number that says so
    peak = float(heat_HW.max() * heat_HW.size / max(heat_HW.sum(), 1e-12))
    return Panel(caption, f"peak {peak:.1f} x even", overlay(image_HW3, heat_HW))


def _scaled(pixels_HW3: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """At the size of a sheet's cell, or another image's."""
    height, width = pixels_HW3.shape[:2]
    if like is not None:
        size: Sequence[int] = (like.shape[1], like.shape[0])
    else:
        factor = SIDE / max(height, width)
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
    smooth = Image.Resampling.NEAREST if like is not None else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels_HW3).resize((size[0], size[1]), smooth))
