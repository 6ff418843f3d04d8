"""Views of an image: what is drawn for them, and the crops that the host makes.

The host decodes an image once, whatever the number of views, and resamples each random crop to uint8; everything after the
crop (flip, colour, blur, normalisation) runs batched in `pretrain.data.augment`. What is drawn is a pure function of
(seed, pass over the data set, row id, view), so a batch's views can be drawn again at any time, on any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pretrain.data.decode import decode_image, image_size
from pretrain.data.hashing import uniform

# domain separation between what is drawn for crops and for colours
CROP, COLOUR = 11, 12
CROP_ATTEMPTS = 10

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class ViewSpec:
    """How one view is drawn. Probabilities in [0, 1]; jitter strengths as in torchvision's ColorJitter.

    Args:
        size: side of the square view in pixels.
        crop_scale: smallest and largest share of the image's area that a crop may take.
        crop_ratio: smallest and largest ratio of a crop's width to its height.
        flip: probability of a horizontal flip.
        jitter: probability of colour jitter as a whole.
        brightness, contrast, saturation: factors are uniform in [max(0, 1 - x), 1 + x].
        hue: shifts are uniform in [-x, x] of the colour circle, at most 0.5.
        grey: probability of greyscale.
        blur: probability of Gaussian blur, with sigma uniform in `blur_sigma` (pixels of the view).
        solarize: probability of inverting all values from one half up.
    """

    size: int
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    grey: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0


def simclr_views(size: int, *, crop_scale: tuple[float, float] = (0.08, 1.0), strength: float = 1.0) -> list[ViewSpec]:
    """SimCLR's two views (https://arxiv.org/abs/2002.05709, appendix A) with the defaults of lightly's transform.

    Images of 32 pixels are not blurred, as in the paper's CIFAR experiments (appendix B.9).
    """
    view = ViewSpec(
        size=size,
        crop_scale=crop_scale,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=min(0.2 * strength, 0.5),
        blur=0.5 if size > 32 else 0.0,
    )
    return [view, view]


def weak_views(size: int, *, crop_scale: tuple[float, float] = (0.35, 1.0)) -> list[ViewSpec]:
    """One view with a mild crop and a flip, for training on labels."""
    return [ViewSpec(size=size, crop_scale=crop_scale, jitter=0.0, grey=0.0, blur=0.0)]


def draw_boxes(
    specs: Sequence[ViewSpec], *, width: int, height: int, seed: int, pass_number: int, row_id: int
) -> list[Box]:
    """A crop (left, top, right, bottom) in pixels for each view of an image, as torchvision's RandomResizedCrop draws it.

    Area and log-ratio are uniform; a crop that does not fit is drawn again, ten times at most, then the largest central
    crop within the ratios is taken.
    """
    views = np.arange(len(specs))[:, None, None]
    numbers = uniform(CROP, seed, pass_number, row_id, views, np.arange(CROP_ATTEMPTS)[:, None], np.arange(4))
    return [_box(spec, width, height, draws) for spec, draws in zip(specs, numbers.tolist(), strict=True)]


def _box(spec: ViewSpec, width: int, height: int, draws: list[list[float]]) -> Box:
    low, high = spec.crop_scale
    log_ratios = math.log(spec.crop_ratio[0]), math.log(spec.crop_ratio[1])
    for area_draw, ratio_draw, left_draw, top_draw in draws:
        area = width * height * (low + (high - low) * area_draw)
        ratio = math.exp(log_ratios[0] + (log_ratios[1] - log_ratios[0]) * ratio_draw)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(left_draw * (width - w + 1)), int(top_draw * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * spec.crop_ratio[1])))
    h = min(height, max(1, round(width / spec.crop_ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def central_box(*, width: int, height: int, share: float) -> Box:
    """The central square whose side is `share` of the short side."""
    side = max(1, round(min(width, height) * share))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


class RandomCrops:
    """Host transform of training: the random crops of all views of an image, uint8 [B, size, size, 3] for each view."""

    def __init__(self, specs: Sequence[ViewSpec], *, seed: int) -> None:
        self.specs, self.seed = list(specs), seed

    def allocate(self, num: int) -> list[np.ndarray]:
        """One array for each view."""
        return [np.empty((num, spec.size, spec.size, 3), dtype=np.uint8) for spec in self.specs]

    def fill(self, arrays: list[np.ndarray], index: int, data: memoryview, pass_number: int, row_id: int) -> None:
        """Decodes an image once and writes its crops. Raises BadImage."""
        encoded = bytes(data)
        width, height = image_size(encoded)
        boxes = draw_boxes(
            self.specs, width=width, height=height, seed=self.seed, pass_number=pass_number, row_id=row_id
        )
        write_crops(encoded, boxes, width, height, [array[index] for array in arrays])


class CentralCrop:
    """Host transform of evaluation: the central square, uint8 [B, size, size, 3].

    `share` is the part of the short side that is kept; 0.875 is the custom of 224 out of 256.
    """

    def __init__(self, size: int, *, share: float = 0.875) -> None:
        self.size, self.share = size, share

    def allocate(self, num: int) -> list[np.ndarray]:
        """One array."""
        return [np.empty((num, self.size, self.size, 3), dtype=np.uint8)]

    def fill(self, arrays: list[np.ndarray], index: int, data: memoryview, pass_number: int, row_id: int) -> None:
        """Decodes an image and writes its central crop. Raises BadImage."""
        encoded = bytes(data)
        width, height = image_size(encoded)
        box = central_box(width=width, height=height, share=self.share)
        write_crops(encoded, [box], width, height, [arrays[0][index]])


def write_crops(encoded: bytes, boxes: Sequence[Box], width: int, height: int, targets: Sequence[np.ndarray]) -> None:
    """Decodes an image and resamples each box into its target, uint8 [size, size, 3]. Raises BadImage.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where every crop stays at least as large as its target.
    """
    spare = min(
        min(right - left, bottom - top) / target.shape[0]
        for (left, top, right, bottom), target in zip(boxes, targets, strict=True)
    )
    smallest_side = max(1, math.ceil(min(width, height) / spare)) if spare > 1 else None
    pixels = decode_image(encoded, smallest_side=smallest_side)
    image = Image.fromarray(pixels)
    scale_x, scale_y = image.width / width, image.height / height
    for (left, top, right, bottom), target in zip(boxes, targets, strict=True):
        # Pillow's resize filters by the scale of the reduction (antialias), and its box needs no copy of the crop
        box = (left * scale_x, top * scale_y, min(right * scale_x, image.width), min(bottom * scale_y, image.height))
        target[:] = np.asarray(image.resize(target.shape[:2], Image.Resampling.BILINEAR, box=box))
