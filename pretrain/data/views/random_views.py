"""Views of an image: what is drawn for them, and what the host makes of them.

The host decodes an image once, whatever the number of views, and resamples each random crop straight into
its position in a batch of uint8. What comes after the crop runs batched on the training device
(`pretrain.data.views.augment`), or in the same threads where that is the CPU. What is drawn is a pure
function of (seed, pass over the data set, row id, view), so a batch's views can be drawn again at any time,
on any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.data.hashing import uniform
from pretrain.data.images import crop_kernels, plane_kernels
from pretrain.data.images.buffer_pool import BufferPool
from pretrain.data.images.pixels import OpenedImage, buffers, open_image
from pretrain.data.views import colour_kernels
from pretrain.data.views.colours import Colours, draw_colours
from pretrain.data.views.recipes import ViewSpec

# domain separation between what is drawn for crops and for colours (12, in `pretrain.data.views.colours`)
CROP = 11
CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class Draws:
    """All that is random about the views of B rows.

    Attributes:
        crops_BVA4: float64 in [0, 1), area, log-ratio, left and top of each attempt to position a crop.
        colours: for each view, what is drawn for its B rows.
    """

    crops_BVA4: np.ndarray
    colours: list[Colours]


def draw_views(specs: Sequence[ViewSpec], *, seed: int, passes: np.ndarray, row_ids: np.ndarray) -> Draws:
    """Draws the views of rows, int64 [B], in their passes over the data, int64 [B]."""
    passes, row_ids = np.asarray(passes), np.asarray(row_ids)
    views, attempts = np.arange(len(specs))[:, None, None], np.arange(CROP_ATTEMPTS)[:, None]
    each = (slice(None), None, None, None)
    return Draws(
        crops_BVA4=uniform(CROP, seed, passes[each], row_ids[each], views, attempts, np.arange(4)),
        colours=[
            draw_colours(spec, seed=seed, passes=passes, row_ids=row_ids, view=view)
            for view, spec in enumerate(specs)
        ],
    )


def find_boxes(specs: Sequence[ViewSpec], crops_VA4: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """The crops of an image, int64 [V, 4]: left, top, width and height in pixels,
    as torchvision's RandomResizedCrop.

    Area and log-ratio are uniform; a crop that does not fit is drawn again, ten times at most, then the
    largest central crop within the ratios is taken.
    """
    boxes_V4 = np.empty((len(specs), 4), np.int64)
    crop_kernels.find_boxes(crops_VA4, _ranges(specs), width, height, boxes_V4)
    return boxes_V4


def _ranges(specs: Sequence[ViewSpec]) -> np.ndarray:
    return np.array([(*spec.crop_scale, *map(math.log, spec.crop_ratio)) for spec in specs])


class RandomViews:
    """Host transform of training: the random views of each image, uint8 [B, C, size, size] for each view.

    Args:
        specs: of the views.
        seed: of the run.
        colours_on_host: also does flip, jitter, greyscale, blur and solarize; else that is left to the
            training device.
        channels: 3 for RGB, 1 for grey, or the number of the images' own bands.
        pinned: puts batches into page-locked memory, from which CUDA copies without waiting.
    """

    def __init__(
        self,
        specs: Sequence[ViewSpec],
        *,
        seed: int,
        colours_on_host: bool = True,
        channels: int = 3,
        pinned: bool = False,
    ) -> None:
        self.specs, self.seed, self.channels = list(specs), seed, channels
        self.colours_on_host, self.pinned = colours_on_host, pinned
        self.ranges_V4, self.buffer_pool = _ranges(specs), BufferPool()

    def begin(self, passes: np.ndarray, row_ids: np.ndarray) -> ViewFilling:
        """Draws the views of a batch and makes room for them."""
        return ViewFilling(
            self, draw_views(self.specs, seed=self.seed, passes=passes, row_ids=row_ids), len(row_ids)
        )


class ViewFilling:
    """A batch whose views are being made.

    Attributes:
        arrays: uint8 [B, C, size, size] for each view.
        parameters: float32 [B, 12] for each view, what is left to the training device; none when nothing is.
        geometry_VB5: float32, where each view lies: left, top, right and bottom as fractions of the image's
            sides, and 1 where it is mirrored. Methods that compare positions of one
            view with positions of another need it.
    """

    def __init__(self, transform: RandomViews, draws: Draws, num: int) -> None:
        self._transform, self._draws = transform, draws
        shapes = [(num, transform.channels, spec.size, spec.size) for spec in transform.specs]
        self.arrays = [transform.buffer_pool.array(shape, pinned=transform.pinned) for shape in shapes]
        rows = [colours.rows(spec) for colours, spec in zip(draws.colours, transform.specs, strict=True)]
        self._rows = rows if transform.colours_on_host else None
        self._changes = [
            colours.changes(spec) for colours, spec in zip(draws.colours, transform.specs, strict=True)
        ]
        self.parameters: list[np.ndarray] | None = None if transform.colours_on_host else rows
        self._sizes = [spec.size for spec in transform.specs]
        self._flipped_VB = [colours.flipped.tolist() for colours in draws.colours]
        self.geometry_VB5 = np.zeros((len(shapes), num, 5), np.float32)
        self.geometry_VB5[:, :, 4] = self._flipped_VB

    def fill(self, index: int, data: Any) -> None:
        """Decodes an image once and writes its views into slot `index`. Raises BadImage."""
        transform = self._transform
        image = open_image(data, channels=transform.channels, fast=True)
        boxes_V4 = np.empty((len(transform.specs), 4), np.int64)
        crop_kernels.place_crops(
            self._draws.crops_BVA4[index],
            transform.ranges_V4,
            image.width,
            image.height,
            boxes_V4,
            self.geometry_VB5[:, index],
        )
        boxes = boxes_V4.tolist()
        source = CropSource.of(image, boxes, self._sizes)
        for view, box in enumerate(boxes):
            target = self.arrays[view][index]
            source.write(
                box, target, flipped=self._flipped_VB[view][index], cubic=transform.specs[view].cubic
            )
            if self._rows is not None and self._changes[view][index]:
                scratch = buffers.floats(
                    colour_kernels.colour_scratch_floats(target.shape[0], target.shape[1])
                )
                colour_kernels.colour(target, self._rows[view][index], scratch)


def write_crop(
    groups_GHW4: np.ndarray,
    box: tuple[float, float, float, float],
    target_CSS: np.ndarray,
    *,
    flipped: bool = False,
    cubic: bool = False,
) -> None:
    """Resamples left, top, width and height (in pixels) of an image into uint8 [C, S, S], antialiased."""
    size = target_CSS.shape[1]
    scratch = buffers.integers(crop_kernels.crop_scratch_pixels(groups_GHW4.shape[2], size))
    for group, pixels_HW4 in enumerate(groups_GHW4):
        crop_kernels.crop(
            pixels_HW4, *map(float, box), flipped, cubic, target_CSS[4 * group : 4 * group + 4], scratch
        )


@dataclass(frozen=True)
class CropSource:
    """What crops of an image are cut from.

    Attributes:
        image: the image.
        groups_GHW4: its pixels, of a fraction of its size where all crops allow that;
            None where its planes are cut.
    """

    image: OpenedImage
    groups_GHW4: np.ndarray | None

    @classmethod
    def of(cls, image: OpenedImage, boxes: Sequence[Sequence[float]], sizes: Sequence[int]) -> CropSource:
        """Decodes an image for crops of `boxes` (left, top, width, height) to `sizes`. Raises BadImage."""
        return cls(image, None if image.planes is not None else image.decode(min_denominator(boxes, sizes)))

    def write(
        self, box: Sequence[float], target_CSS: np.ndarray, *, flipped: bool = False, cubic: bool = False
    ) -> None:
        """`write_crop` of a box in pixels of the whole image."""
        left, top, width, height = map(float, box)
        if self.groups_GHW4 is not None:
            scale_x = self.groups_GHW4.shape[2] / self.image.width
            scale_y = self.groups_GHW4.shape[1] / self.image.height
            scaled = left * scale_x, top * scale_y, width * scale_x, height * scale_y
            write_crop(self.groups_GHW4, scaled, target_CSS, flipped=flipped, cubic=cubic)
            return
        assert self.image.planes is not None
        scratch = buffers.integers(plane_kernels.plane_scratch_pixels(self.image.width, target_CSS.shape[1]))
        planes = self.image.planes.split()
        plane_kernels.crop_planes(*planes, left, top, width, height, flipped, cubic, target_CSS, scratch)


def min_denominator(boxes: Sequence[Sequence[float]], sizes: Sequence[int]) -> int:
    """The smallest image (1/2, 1/4 or 1/8) in which every crop still is as large as its view."""
    spare = min(
        [min(width, height) / size for (_, _, width, height), size in zip(boxes, sizes, strict=True)]
    )
    return 8 if spare >= 8 else 4 if spare >= 4 else 2 if spare >= 2 else 1


class CentralCrop:
    """Host transform of evaluation: the central square, uint8 [B, C, size, size].

    `fraction` is the part of the short side that is kept; 0.875 is the custom of 224 out of 256. `whole`
    takes the whole image instead, squeezed into the square.
    """

    def __init__(
        self, size: int, *, fraction: float = 0.875, whole: bool = False, channels: int = 3
    ) -> None:
        self.size = size
        self.fraction = fraction
        self.whole = whole
        self.channels = channels
        self.buffer_pool = BufferPool()

    def begin(self, passes: np.ndarray, row_ids: np.ndarray) -> CentralFilling:
        """Makes room for a batch."""
        return CentralFilling(self, len(row_ids))


class CentralFilling:
    """A batch whose central crops are being made, see `ViewFilling`."""

    parameters = None
    geometry_VB5 = None

    def __init__(self, transform: CentralCrop, num: int) -> None:
        self._transform = transform
        self.arrays = [
            transform.buffer_pool.array((num, transform.channels, transform.size, transform.size))
        ]

    def fill(self, index: int, data: Any) -> None:
        """Decodes an image and writes its central crop into slot `index`. Raises BadImage."""
        transform = self._transform
        image = open_image(data, channels=transform.channels)
        box = (0, 0, image.width, image.height)
        if not transform.whole:
            box = central_box(width=image.width, height=image.height, fraction=transform.fraction)
        CropSource.of(image, [box], [transform.size]).write(box, self.arrays[0][index])


def central_box(*, width: int, height: int, fraction: float) -> tuple[int, int, int, int]:
    """Left, top, width and height of the central square whose side is `fraction` of the short side."""
    side = max(1, round(min(width, height) * fraction))
    return (width - side) // 2, (height - side) // 2, side, side
