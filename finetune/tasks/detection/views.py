"""Images on a square canvas, and where their boxes end up on it.

A canvas is a square window onto an image, resampled to S pixels; what the window shows beyond the image's
edges is filled with the mean colour. For evaluation the window is the smallest that holds the whole image
(aspect ratio kept, image in the upper left corner); for training it is drawn: smaller (zoomed in, a crop) or
larger (zoomed out), anywhere, mirrored or not.

`geometry_VB5` of these batches holds two rows of left, top, right and bottom in pixels of the image: the
window (the fifth number says how it is mirrored: 1 left and right, 2 top and bottom, 3 both),
and the image itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pretrain.data.hashing import uniform
from pretrain.data.images.buffer_pool import BufferPool
from pretrain.data.images.pixels import OpenedImage, buffers, open_image
from pretrain.data.reading.loader import HostTransform
from pretrain.data.views import colour_kernels
from pretrain.data.views.colours import draw_colours
from pretrain.data.views.random_views import CropSource
from pretrain.data.views.recipes import ViewSpec
from pretrain.data.views.viewing import Viewer

WINDOW = 21  # domain separation, see `pretrain.data.views.random_views.CROP`
ACROSS, DOWN = 1, 2  # how a window is mirrored
MIN_SIDE = 2.0  # pixels of the canvas; less of a box is not trained on

Window = tuple[float, float, float]  # left, top and side, in pixels of the image


def letterbox(width: int, height: int) -> Window:
    """The smallest window that holds a whole image."""
    return 0.0, 0.0, float(max(width, height))


def jittered(width: int, height: int, draws_3: np.ndarray, scale: tuple[float, float]) -> Window:
    """A window whose canvas shows the image `scale` times as large as the letterbox does, log-uniform.

    As in large-scale jittering (Ghiasi et al., https://arxiv.org/abs/2012.07177): a window smaller than the
    image lies inside of it, and a larger one around it.
    `draws_3` are uniform in [0, 1): scale, left and top.
    """
    low, high = map(math.log, scale)
    side = max(width, height) / math.exp(low + (high - low) * draws_3[0])
    left, top = ((length - side) * draw for length, draw in zip((width, height), draws_3[1:], strict=True))
    return left, top, side


def boxes_on_canvas(
    xyxy_N4: np.ndarray, geometry_25: np.ndarray, size: int, *, min_visible: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in pixels of an image, inside of it -> float32 [N, 4] cut at the edges of its canvas,
    and which to keep, bool [N].

    A box is kept when at least `min_visible` of its area lies on the canvas, and two pixels of either side.
    """
    left, top, right, _, mirrored = (float(number) for number in geometry_25[0])
    scale = size / (right - left)
    whole_N4 = (xyxy_N4.astype(np.float64) - (left, top, left, top)) * scale
    if int(mirrored) & ACROSS:
        whole_N4[:, [0, 2]] = size - whole_N4[:, [2, 0]]
    if int(mirrored) & DOWN:
        whole_N4[:, [1, 3]] = size - whole_N4[:, [3, 1]]
    cut_N4 = whole_N4.clip(0, size)
    sides_N2, whole_sides_N2 = cut_N4[:, 2:] - cut_N4[:, :2], whole_N4[:, 2:] - whole_N4[:, :2]
    visible_N = sides_N2.prod(1) >= min_visible * whole_sides_N2.prod(1)
    return cut_N4.astype(np.float32), visible_N & (sides_N2 >= MIN_SIDE).all(1)


def boxes_in_image(xyxy_N4: np.ndarray, geometry_25: np.ndarray, size: int) -> np.ndarray:
    """Boxes on a letterboxed canvas -> float32 [N, 4] in pixels of the image, inside of it."""
    left, top, right, _, _ = (float(number) for number in geometry_25[0])
    whole_N4 = xyxy_N4.astype(np.float64) * ((right - left) / size) + (left, top, left, top)
    return whole_N4.clip(0, np.tile(geometry_25[1, 2:4].astype(np.float64), 2)).astype(np.float32)


def image_on_canvas(geometry_25: np.ndarray, size: int) -> tuple[float, float]:
    """Height and width of a letterboxed image on its canvas, in pixels."""
    side = float(geometry_25[0, 2] - geometry_25[0, 0])
    return size * float(geometry_25[1, 3]) / side, size * float(geometry_25[1, 2]) / side


def write_window(
    image: OpenedImage,
    window: Window,
    target_CSS: np.ndarray,
    geometry_25: np.ndarray,
    fill_C: np.ndarray,
    mirrored: int,
) -> None:
    """Decodes an image and writes a window onto it as uint8 [C, S, S]; fills the geometry.
    Raises BadImage.
    """
    size = target_CSS.shape[1]
    left, top, side = window
    box = left, top, side, side
    CropSource.of(image, [box], [size]).write(box, target_CSS, flipped=bool(mirrored & ACROSS))
    columns, rows = (
        _seen(low, side, length, size, bool(mirrored & way))
        for low, length, way in ((left, image.width, ACROSS), (top, image.height, DOWN))
    )
    if mirrored & DOWN:
        target_CSS[:] = target_CSS[:, ::-1].copy()
    fill_C11 = fill_C[:, None, None]
    target_CSS[:, : rows.start], target_CSS[:, rows.stop :] = fill_C11, fill_C11
    target_CSS[:, :, : columns.start], target_CSS[:, :, columns.stop :] = fill_C11, fill_C11
    geometry_25[0] = left, top, left + side, top + side, mirrored
    geometry_25[1] = 0, 0, image.width, image.height, 0


def _seen(low: float, side: float, length: int, size: int, mirrored: bool) -> slice:
    """The pixels of a canvas, along one axis, whose centres lie on the image."""
    first = min(size, max(0, math.ceil(-low * size / side - 0.5)))
    stop = max(first, min(size, math.ceil((length - low) * size / side - 0.5)))
    return slice(size - stop, size - first) if mirrored else slice(first, stop)


def mean_colour(mean: Sequence[float]) -> np.ndarray:
    """uint8 [C]: what becomes zero when an image is normalised."""
    return np.clip(np.round(np.array(mean) * 255), 0, 255).astype(np.uint8)


class Letterbox:
    """Host transform of evaluation: whole images on canvases, uint8 [B, C, size, size]."""

    def __init__(self, size: int, *, mean: Sequence[float], channels: int = 3) -> None:
        self.size, self.channels, self.fill_C = size, channels, mean_colour(mean)

    def begin(self, passes: np.ndarray, row_ids: np.ndarray) -> LetterboxFilling:
        """Makes room for a batch."""
        return LetterboxFilling(self, len(row_ids))


class LetterboxFilling:
    """A batch of letterboxed images that are being made, see
    `pretrain.data.views.random_views.ViewFilling`.
    """

    parameters = None

    def __init__(self, transform: Letterbox, num: int) -> None:
        self._transform = transform
        self.arrays = [np.empty((num, transform.channels, transform.size, transform.size), np.uint8)]
        self.geometry_VB5 = np.zeros((2, num, 5), np.float32)

    def fill(self, index: int, data: Any) -> None:
        """Decodes an image and writes it into slot `index`. Raises BadImage."""
        image = open_image(data, channels=self._transform.channels)
        window = letterbox(image.width, image.height)
        target, geometry = self.arrays[0][index], self.geometry_VB5[:, index]
        write_window(image, window, target, geometry, self._transform.fill_C, 0)


class BoxViews:
    """Host transform of training: a random window onto each image, uint8 [B, C, size, size].

    Everything is drawn by a hash of (seed, pass over the data, row), as all views are.

    Args:
        spec: size, horizontal flip and colours; its crop is not used.
        scale: smallest and largest size of the image on its canvas, as a factor of the letterbox's.
        flip_vertical: probability of mirroring top and bottom.
        mean: of the normalisation, which fills what lies beyond an image.
        seed, colours_on_host, channels, pinned: as for `pretrain.data.views.random_views.RandomViews`.
    """

    def __init__(
        self,
        spec: ViewSpec,
        *,
        scale: tuple[float, float],
        flip_vertical: float,
        mean: Sequence[float],
        seed: int,
        colours_on_host: bool = True,
        channels: int = 3,
        pinned: bool = False,
    ) -> None:
        self.spec = spec
        self.scale = scale
        self.flip_vertical = flip_vertical
        self.fill_C = mean_colour(mean)
        self.seed, self.colours_on_host, self.channels, self.pinned = seed, colours_on_host, channels, pinned
        self.buffer_pool = BufferPool()

    def begin(self, passes: np.ndarray, row_ids: np.ndarray) -> BoxFilling:
        """Draws the windows of a batch and makes room for them."""
        return BoxFilling(self, np.asarray(passes), np.asarray(row_ids))


class BoxFilling:
    """A batch of random windows that are being made, see `pretrain.data.views.random_views.ViewFilling`."""

    def __init__(self, transform: BoxViews, passes: np.ndarray, row_ids: np.ndarray) -> None:
        self._transform, spec = transform, transform.spec
        draws_B4 = uniform(WINDOW, transform.seed, passes[:, None], row_ids[:, None], np.arange(4))
        self._windows_B3 = draws_B4[:, :3]
        colours = draw_colours(spec, seed=transform.seed, passes=passes, row_ids=row_ids, view=0)
        self._mirrored_B = ACROSS * colours.flipped.astype(int) + DOWN * (
            draws_B4[:, 3] < transform.flip_vertical
        )
        self._rows, self._changes = colours.rows(spec), colours.changes(spec)
        self.parameters = None if transform.colours_on_host else [self._rows]
        shape = (len(row_ids), transform.channels, spec.size, spec.size)
        self.arrays = [transform.buffer_pool.array(shape, pinned=transform.pinned)]
        self.geometry_VB5 = np.zeros((2, len(row_ids), 5), np.float32)

    def fill(self, index: int, data: Any) -> None:
        """Decodes an image and writes its window into slot `index`. Raises BadImage."""
        transform, target = self._transform, self.arrays[0][index]
        image = open_image(data, channels=transform.channels)
        window = jittered(image.width, image.height, self._windows_B3[index], transform.scale)
        geometry, mirrored = self.geometry_VB5[:, index], int(self._mirrored_B[index])
        write_window(image, window, target, geometry, transform.fill_C, mirrored)
        if self.parameters is None and self._changes[index]:
            scratch = buffers.floats(colour_kernels.colour_scratch_floats(target.shape[0], target.shape[1]))
            colour_kernels.colour(target, self._rows[index], scratch)


class BoxViewer(Viewer):
    """A `Viewer` of random windows."""

    def __init__(
        self, spec: ViewSpec, *, scale: tuple[float, float], flip_vertical: float, **viewer: Any
    ) -> None:
        super().__init__([spec], **viewer)
        self._scale, self._flip_vertical = scale, flip_vertical

    def host_transform(self) -> HostTransform:
        """Random windows."""
        return BoxViews(
            self.specs[0],
            scale=self._scale,
            flip_vertical=self._flip_vertical,
            mean=self.mean,
            seed=self.seed,
            colours_on_host=self.device.type == "cpu",
            channels=self.channels,
            pinned=self.device.type == "cuda",
        )
