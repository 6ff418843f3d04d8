"""Whole images for evaluation, and the part of one that most attention falls on."""

from __future__ import annotations

from typing import Any

import numpy as np

from pretrain.data.images.pixels import open_image
from pretrain.data.views.random_views import write_crop

# left, top, right and bottom as fractions of the image's sides
Box = tuple[float, float, float, float]


class WholeImage:
    """Host transform: the middle of an image in both directions, stretched to uint8 [B, C, size, size].

    A caption speaks of the whole image, so nothing is cut off a long side.
    `fraction` is the part of each side that is kept.
    """

    def __init__(self, size: int, *, fraction: float = 1.0, channels: int = 3) -> None:
        self.size, self.fraction, self.channels = size, fraction, channels

    def begin(self, passes: np.ndarray, row_ids: np.ndarray) -> WholeFilling:
        """Makes room for a batch."""
        return WholeFilling(self, len(row_ids))


class WholeFilling:
    """A batch that is being made, see `pretrain.data.views.random_views.ViewFilling`."""

    parameters = None

    def __init__(self, transform: WholeImage, num: int) -> None:
        self._transform = transform
        self.arrays = [np.empty((num, transform.channels, transform.size, transform.size), np.uint8)]
        edge = (1 - transform.fraction) / 2
        self.geometry_VB5 = np.broadcast_to(
            np.array([edge, edge, 1 - edge, 1 - edge, 0], np.float32), (1, num, 5)
        )

    def fill(self, index: int, data: Any) -> None:
        """Decodes an image and writes it into slot `index`. Raises BadImage."""
        transform = self._transform
        image = open_image(data, channels=transform.channels)
        spare = min(image.width, image.height) * transform.fraction / transform.size
        groups = image.decode(next(d for d in (8, 4, 2, 1) if d <= max(1.0, spare)))
        height, width = groups.shape[1:3]
        edge = (1 - transform.fraction) / 2
        box = (width * edge, height * edge, width * transform.fraction, height * transform.fraction)
        write_crop(groups, box, self.arrays[0][index])


def dwelling_box(heat_HW: np.ndarray, fraction: float) -> Box:
    """The smallest box of cells that holds `fraction` of all heat, as fractions of the map's sides; of equal
    ones the hottest.
    """
    height, width = heat_HW.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = np.asarray(heat_HW, np.float64).cumsum(0).cumsum(1)
    needed = fraction * sums[-1, -1] * (1 - 1e-6)
    best: tuple[float, float, Box] = (float(height * width), -float(sums[-1, -1]), (0.0, 0.0, 1.0, 1.0))
    for rows in range(1, height + 1):
        for columns in range(1, width + 1):
            if rows * columns > best[0]:
                break
            inside = (
                sums[rows:, columns:]
                - sums[:-rows, columns:]
                - sums[rows:, :-columns]
                + sums[:-rows, :-columns]
            )
            top, left = divmod(int(inside.argmax()), inside.shape[1])
            hottest = float(inside[top, left])
            if hottest >= needed and (rows * columns, -hottest) < best[:2]:
                box = (left / width, top / height, (left + columns) / width, (top + rows) / height)
                best = (float(rows * columns), -hottest, box)
    return best[2]


def inside_of(box: Box, frame: Box) -> Box:
    """A box given in fractions of a frame, in fractions of the image that the frame is given in."""
    left, top, right, bottom = frame
    across, down = right - left, bottom - top
    return (left + box[0] * across, top + box[1] * down, left + box[2] * across, top + box[3] * down)
