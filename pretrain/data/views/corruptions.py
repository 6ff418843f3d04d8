"""Corruptions of images at five strengths, after ImageNet-C (Hendrycks and
Dietterich, https://arxiv.org/abs/1903.12261).

    corrupt(pixels_HWC, "fog", 3, key)

Noise, blur, weather and compression. Strengths are those of the paper at 224 pixels; lengths (radii,
streaks, flakes) follow the short side of the image. Weather is drawn here, so there is no frost, which
pastes photographs. Boxes stay where they are: nothing moves. What is random about a sample is a pure
function of its key, whatever the batch, the threads or their number.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from pretrain.data.hashing import hash64
from pretrain.data.reading.loader import Filling, HostTransform

STRENGTHS = (1, 2, 3, 4, 5)
CORRUPT = 31  # domain of what is drawn, apart from crops and colours

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def corrupt(pixels_HWC: np.ndarray, kind: str, strength: int, key: int) -> np.ndarray:
    """uint8 [H, W, C] -> uint8 of the same shape.

    Args:
        kind: of `CORRUPTIONS`.
        strength: 1 to 5.
        key: of the sample; the same key gives the same corruption, and every kind and strength others.
    """
    number = list(CORRUPTIONS).index(kind)
    generator = np.random.Generator(np.random.Philox(key=int(hash64(CORRUPT, key, number, strength))))
    changed = CORRUPTIONS[kind](pixels_HWC.astype(np.float32) / 255, strength - 1, generator)
    return np.round(changed.clip(0, 1) * 255).astype(np.uint8)


class CorruptedImages:
    """A host transform whose images are corrupted behind it,
    as the network would get them from a worse camera.

    Args:
        transform: makes uint8 [B, C, H, W] as its first array.
        kind, strength: see `corrupt`.
        seed: another one draws other corruptions.
    """

    def __init__(self, transform: HostTransform, kind: str, strength: int, *, seed: int = 0) -> None:
        self.transform, self.kind, self.strength, self.seed = transform, kind, strength, seed

    def begin(self, passes: np.ndarray, row_ids: np.ndarray) -> CorruptedFilling:
        """Makes room for a batch."""
        return CorruptedFilling(self, self.transform.begin(passes, row_ids), np.asarray(row_ids))


class CorruptedFilling:
    """A batch that is being corrupted, see `pretrain.data.views.random_views.ViewFilling`."""

    def __init__(self, transform: CorruptedImages, filling: Filling, row_ids: np.ndarray) -> None:
        self._transform, self._filling, self._row_ids = transform, filling, row_ids
        self.arrays = filling.arrays
        self.parameters = filling.parameters
        self.geometry_VB5 = filling.geometry_VB5

    def fill(self, index: int, data: Any) -> None:
        """Makes an image and corrupts it. Raises BadImage."""
        self._filling.fill(index, data)
        how, target_CHW = self._transform, self.arrays[0][index]
        key = int(hash64(how.seed, int(self._row_ids[index])))
        target_CHW[:] = corrupt(target_CHW.transpose(1, 2, 0), how.kind, how.strength, key).transpose(
            2, 0, 1
        )


# -- noise --------------------------------------------------------------------------------------------------


def _gaussian_noise(x: np.ndarray, level: int, draw: np.random.Generator) -> np.ndarray:
    return x + draw.normal(0, (0.08, 0.12, 0.18, 0.26, 0.38)[level], x.shape)


def _shot_noise(x: np.ndarray, level: int, draw: np.random.Generator) -> np.ndarray:
    photons = (60, 25, 12, 5, 3)[level]
    return draw.poisson(x * photons) / photons


def _impulse_noise(x: np.ndarray, level: int, draw: np.random.Generator) -> np.ndarray:
    chance = draw.random(x.shape)
    fraction = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    return np.where(chance < fraction / 2, 0.0, np.where(chance < fraction, 1.0, x))


# -- blur ---------------------------------------------------------------------------------------------------


def _defocus_blur(x: np.ndarray, level: int, draw: np.random.Generator) -> np.ndarray:
    radius = max(0.8, (3, 4, 6, 8, 10)[level] * _scale(x))
    reach = int(np.ceil(radius))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    # the rim is soft: a pixel counts by how much of it lies in the disc
    disc = (radius + 0.5 - np.hypot(rows, columns)).clip(0, 1)
    return _convolved(x, disc / disc.sum())


def _motion_blur(x: np.ndarray, level: int, draw: np.random.Generator) -> np.ndarray:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    return _convolved(x, _streak(radius * _scale(x), sigma * _scale(x), draw.uniform(-45, 45)))


def _zoom_blur(x: np.ndarray, level: int, draw: np.random.Generator) -> np.ndarray:
    largest, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[level]
    zooms = np.arange(1, largest, step)
    return np.mean([_zoomed(x, zoom) for zoom in zooms], axis=0)


# -- weather ------------------------------------------------------------------------------------------------


def _fog(x: np.ndarray, level: int, draw: np.random.Generator) -> np.ndarray:
    density, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[level]
    clouds = _clouds(x.shape[:2], decay, draw)[..., None]
    # what is lit stays as bright as it was
    brightest = float(x.max())
    return (x + density * clouds) * brightest / (brightest + density)


def _snow(x: np.ndarray, level: int, draw: np.random.Generator) -> np.ndarray:
    mean, deviation, zoom, threshold, radius, sigma, kept = (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    height, width = x.shape[:2]
    flake = max(1.0, zoom * _scale(x))
    flakes = draw.normal(mean, deviation, (int(np.ceil(height / flake)), int(np.ceil(width / flake))))
    layer = _resized(flakes, (height, width))
    layer = np.where(layer < threshold, 0, layer).clip(0, 1)[..., None]
    layer = _convolved(layer, _streak(radius * _scale(x), sigma * _scale(x), draw.uniform(-135, -45)))
    grey = x.mean(2, keepdims=True)
    whitened = kept * x + (1 - kept) * np.maximum(x, 1.5 * grey + 0.5)
    return whitened + layer + layer[::-1, ::-1]


def _brightness(x: np.ndarray, level: int, draw: np.random.Generator) -> np.ndarray:
    # value of HSV is the largest channel; hue and saturation stay
    value = x.max(2, keepdims=True)
    lifted = (value + (0.1, 0.2, 0.3, 0.4, 0.5)[level]).clip(0, 1)
    return np.where(value > 0, x * lifted / np.maximum(value, 1e-6), lifted)


# -- compression and what else a pipeline does --------------------------------------------------------------


def _contrast(x: np.ndarray, level: int, draw: np.random.Generator) -> np.ndarray:
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + mean


def _pixelate(x: np.ndarray, level: int, draw: np.random.Generator) -> np.ndarray:
    fraction = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    height, width = x.shape[:2]
    small = _resized(
        x, (max(1, round(height * fraction)), max(1, round(width * fraction))), Image.Resampling.BOX
    )
    return _resized(small, (height, width), Image.Resampling.NEAREST)


def _jpeg(x: np.ndarray, level: int, draw: np.random.Generator) -> np.ndarray:
    quality = (25, 18, 15, 10, 7)[level]
    pixels = np.round(x.clip(0, 1) * 255).astype(np.uint8)
    if pixels.shape[2] == 3:
        return _through_jpeg(pixels, quality)
    return np.stack([_through_jpeg(pixels[..., band], quality) for band in range(pixels.shape[2])], axis=2)


def _through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), np.float32) / 255


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian noise": _gaussian_noise,
    "shot noise": _shot_noise,
    "impulse noise": _impulse_noise,
    "defocus blur": _defocus_blur,
    "motion blur": _motion_blur,
    "zoom blur": _zoom_blur,
    "fog": _fog,
    "snow": _snow,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}

# what they are of -> kinds
GROUPS: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian noise", "shot noise", "impulse noise"),
    "blur": ("defocus blur", "motion blur", "zoom blur"),
    "weather": ("fog", "snow", "brightness"),
    "digital": ("contrast", "pixelate", "jpeg"),
}


# -- tools --------------------------------------------------------------------------------------------------


def _scale(x: np.ndarray) -> float:
    """The short side over the 224 pixels that the paper's lengths are for."""
    return min(x.shape[:2]) / 224


def _convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Every channel convolved with an odd kernel; the borders are mirrored."""
    (up, left), (height, width) = (side // 2 for side in kernel.shape), x.shape[:2]
    padded = np.pad(x, ((up, up), (left, left), (0, 0)), mode="symmetric")
    size = [a + b - 1 for a, b in zip(padded.shape[:2], kernel.shape)]
    spectrum = np.fft.rfft2(padded, size, axes=(0, 1)) * np.fft.rfft2(kernel, size)[..., None]
    whole = np.fft.irfft2(spectrum, size, axes=(0, 1))
    return whole[2 * up : 2 * up + height, 2 * left : 2 * left + width]


def _streak(radius: float, sigma: float, degrees: float) -> np.ndarray:
    """A kernel [n, n] of a line that fades from its middle in one direction, as a moving camera draws it."""
    reach = max(1, int(np.ceil(radius)))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    direction = np.array([np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))])
    for distance in np.linspace(0, radius, 4 * reach + 1):
        row, column = reach + direction * distance
        weight = np.exp(-0.5 * (distance / max(sigma, 0.3)) ** 2)
        top, left = int(row), int(column)
        for y, x, fraction in _corners(row - top, column - left):
            if top + y < len(kernel) and left + x < len(kernel):
                kernel[top + y, left + x] += weight * fraction
    return kernel / kernel.sum()


def _corners(down: float, right: float) -> list[tuple[int, int, float]]:
    """The four pixels around a position, with their bilinear fractions."""
    return [(y, x, abs(1 - y - down) * abs(1 - x - right)) for y in (0, 1) for x in (0, 1)]


def _zoomed(x: np.ndarray, zoom: float) -> np.ndarray:
    """The middle of an image, enlarged to its size."""
    height, width = x.shape[:2]
    inner_height, inner_width = height / zoom, width / zoom
    box = (
        (width - inner_width) / 2,
        (height - inner_height) / 2,
        (width + inner_width) / 2,
        (height + inner_height) / 2,
    )
    return _resized(x, (height, width), Image.Resampling.BILINEAR, box)


def _clouds(size_HW: tuple[int, int], decay: float, draw: np.random.Generator) -> np.ndarray:
    """Plasma in [0, 1]: grids of noise, each twice as fine and weaker by `decay`, summed."""
    total = np.zeros(size_HW)
    cells, weight = 2, 1.0
    while cells <= 2 * max(size_HW):
        total += weight * _resized(
            draw.uniform(-1, 1, (cells + 1, cells + 1)), size_HW, Image.Resampling.BICUBIC
        )
        cells, weight = 2 * cells, weight / decay
    total -= total.min()
    return total / max(float(total.max()), 1e-12)


def _resized(
    x: np.ndarray,
    size_HW: tuple[int, int],
    how: Image.Resampling = Image.Resampling.BILINEAR,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """float32 [H, W] or [H, W, C] at another size."""
    bands = x[..., None] if x.ndim == 2 else x
    parts = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(bands[..., c], np.float32)).resize(size_HW[::-1], how, box)
        )
        for c in range(bands.shape[2])
    ]
    return parts[0] if x.ndim == 2 else np.stack(parts, axis=2)
