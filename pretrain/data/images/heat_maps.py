"""Heat maps over images, in numpy and Pillow."""

from __future__ import annotations

import numpy as np
from PIL import Image

# inferno, every tenth of the way: as dark and as light as its number for
# every eye (CC0, van der Walt and Smith)
INFERNO_N3 = np.array(
    [
        (0, 0, 4),
        (22, 11, 57),
        (66, 10, 104),
        (106, 23, 110),
        (147, 38, 103),
        (188, 55, 84),
        (221, 81, 58),
        (243, 120, 25),
        (252, 165, 10),
        (246, 215, 70),
        (252, 255, 164),
    ],
    np.float32,
)


def heat_colours(heat_HW: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] of numbers in [0, 1], from black over red to light yellow;
    what lies outside is cut off.
    """
    positions = np.linspace(0, 1, len(INFERNO_N3))
    heat_HW = np.nan_to_num(np.asarray(heat_HW, np.float32))
    return (
        np.stack([np.interp(heat_HW, positions, channel) for channel in INFERNO_N3.T], axis=-1)
        .round()
        .astype(np.uint8)
    )


def enlarged(heat_HW: np.ndarray, size_HW: tuple[int, int]) -> np.ndarray:
    """float32 at another size, bilinear: the values of cells lie in their middles."""
    image = Image.fromarray(np.ascontiguousarray(heat_HW, np.float32))
    return np.asarray(image.resize((size_HW[1], size_HW[0]), Image.Resampling.BILINEAR))


def unit_range(heat_HW: np.ndarray) -> np.ndarray:
    """Numbers moved to [0, 1], the lowest to 0 and the highest to 1; all equal ones to 0."""
    low, high = float(np.min(heat_HW)), float(np.max(heat_HW))
    return (np.asarray(heat_HW, np.float32) - low) / max(high - low, 1e-12)


def overlay(pixels_HW3: np.ndarray, heat_HW: np.ndarray, *, strength: float = 0.6) -> np.ndarray:
    """An image, uint8 [H, W, 3], under a heat map of any size,
    from its lowest value (the image in grey) to its highest.

    `strength` in [0, 1] is how much of the image the highest value hides.
    """
    height, width = pixels_HW3.shape[:2]
    heat_HW1 = enlarged(unit_range(heat_HW), (height, width))[..., None]
    grey_HW1 = pixels_HW3.astype(np.float32) @ np.array([[0.299], [0.587], [0.114]], np.float32)
    share_HW1 = strength * (0.35 + 0.65 * heat_HW1)
    mixed = (1 - share_HW1) * grey_HW1 + share_HW1 * heat_colours(heat_HW1[..., 0])
    return mixed.round().clip(0, 255).astype(np.uint8)
