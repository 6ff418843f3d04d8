"""Images inside the page, as data: URLs."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

# ten hues that most eyes tell apart, in an order that keeps neighbours apart
# (Okabe and Ito; Tol's bright and muted)
CLASS_COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#9a6324", "#7a5cc4", "#8fb339",
    "#5a6472",
)  # fmt: skip


def data_url(pixels_HW3: np.ndarray, *, longest: int | None = None, quality: int = 78) -> str:
    """An image as a WebP in a URL, scaled down so that no side is longer than `longest`."""
    image = Image.fromarray(np.ascontiguousarray(pixels_HW3))
    if longest is not None and max(image.size) > longest:
        scale = longest / max(image.size)
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
            Image.Resampling.LANCZOS,
        )
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=3)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def class_colour(number: int) -> str:
    """A class's colour; from the tenth on all have the same grey."""
    return CLASS_COLOURS[min(number, len(CLASS_COLOURS) - 1)]
