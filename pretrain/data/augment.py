"""The part of the views that runs batched on the training device: flip, colour jitter, greyscale, blur, solarize, normalise.

Each operation takes images_BCHW as float in [0, 1] and one parameter a sample, and equals torchvision's operation on a float
tensor. Parameters are drawn by `draw_colours` as a pure function of (seed, pass over the data set, row id, view).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.data.hashing import uniform
from pretrain.data.views import COLOUR, ViewSpec

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_GREY_WEIGHTS = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Colours:
    """What was drawn for the views of a batch; every array has B entries, `order_B4` the order of the four jitters.

    `jittered`, `flipped`, `greyed`, `blurred` and `solarized` say which samples an operation is done to.
    """

    flipped: np.ndarray
    jittered: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    order_B4: np.ndarray
    greyed: np.ndarray
    blurred: np.ndarray
    sigma: np.ndarray
    solarized: np.ndarray


def draw_colours(spec: ViewSpec, *, seed: int, passes: np.ndarray, row_ids: np.ndarray, view: int) -> Colours:
    """Draws the parameters of view number `view` of the rows, int64 [B], in their passes, int64 [B]."""
    u = uniform(COLOUR, seed, np.asarray(passes)[:, None], np.asarray(row_ids)[:, None], view, np.arange(14)).T

    def factor(draw: np.ndarray, strength: float) -> np.ndarray:
        low = max(0.0, 1.0 - strength)
        return low + (1.0 + strength - low) * draw

    return Colours(
        flipped=u[0] < spec.flip,
        jittered=u[1] < spec.jitter,
        brightness=factor(u[2], spec.brightness),
        contrast=factor(u[3], spec.contrast),
        saturation=factor(u[4], spec.saturation),
        hue=spec.hue * (2 * u[5] - 1),
        order_B4=np.argsort(u[6:10], axis=0, kind="stable").T,
        greyed=u[10] < spec.grey,
        blurred=u[11] < spec.blur,
        sigma=spec.blur_sigma[0] + (spec.blur_sigma[1] - spec.blur_sigma[0]) * u[12],
        solarized=u[13] < spec.solarize,
    )


def finish_views(
    arrays: Sequence[np.ndarray],
    specs: Sequence[ViewSpec],
    *,
    seed: int,
    passes: np.ndarray,
    row_ids: np.ndarray,
    device: torch.device,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> list[Tensor]:
    """Makes float views_BCHW, normalised, on `device`, of the host's uint8 crops [B, size, size, 3], one array a view."""
    views = []
    for view, (array, spec) in enumerate(zip(arrays, specs, strict=True)):
        colours = draw_colours(spec, seed=seed, passes=passes, row_ids=row_ids, view=view)
        views.append(normalise(apply_colours(to_images(array, device), colours), mean, std))
    return views


def to_images(array: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [B, H, W, 3] on the host -> float32 images_BCHW in [0, 1] on the device."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.permute(0, 3, 1, 2).float().contiguous().div_(255)


def normalise(
    images_BCHW: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """(images - mean) / std, by channel."""
    mean_C11 = torch.tensor(mean, device=images_BCHW.device).view(-1, 1, 1)
    std_C11 = torch.tensor(std, device=images_BCHW.device).view(-1, 1, 1)
    return (images_BCHW - mean_C11).div_(std_C11)


def apply_colours(images_BCHW: Tensor, colours: Colours) -> Tensor:
    """Flip, jitter in each sample's own order, greyscale, blur, solarize; float in [0, 1], changed in place and returned."""
    images = images_BCHW

    def on(chosen: np.ndarray, operation: Callable[..., Tensor], *parameters: np.ndarray) -> None:
        indices = np.flatnonzero(chosen)
        if len(indices):
            index = torch.from_numpy(indices).to(images.device)
            values = [
                torch.from_numpy(p[indices]).to(images.device, torch.float32).view(-1, 1, 1, 1) for p in parameters
            ]
            images.index_copy_(0, index, operation(images[index], *values))

    on(colours.flipped, lambda x: x.flip(3))
    jitters: list[tuple[Callable[..., Tensor], np.ndarray]] = [
        (adjust_brightness, colours.brightness),
        (adjust_contrast, colours.contrast),
        (adjust_saturation, colours.saturation),
        (adjust_hue, colours.hue),
    ]
    for turn in range(4):
        for number, (operation, parameter) in enumerate(jitters):
            on(colours.jittered & (colours.order_B4[:, turn] == number), operation, parameter)
    on(colours.greyed, lambda x: grey(x).expand_as(x))
    on(colours.blurred, gaussian_blur, colours.sigma)
    on(colours.solarized, lambda x: torch.where(x >= 0.5, 1 - x, x))
    return images


def grey(images_BCHW: Tensor) -> Tensor:
    """Luma of ITU-R 601, [B, 1, H, W]."""
    weights = torch.tensor(_GREY_WEIGHTS, device=images_BCHW.device, dtype=images_BCHW.dtype).view(1, 3, 1, 1)
    return (images_BCHW * weights).sum(1, keepdim=True)


def adjust_brightness(images_BCHW: Tensor, factor_B111: Tensor) -> Tensor:
    """Scales all values."""
    return (images_BCHW * factor_B111).clamp_(0, 1)


def adjust_contrast(images_BCHW: Tensor, factor_B111: Tensor) -> Tensor:
    """Blends with the mean grey of each image."""
    mean = grey(images_BCHW).mean((2, 3), keepdim=True)
    return torch.lerp(mean.expand_as(images_BCHW), images_BCHW, factor_B111).clamp_(0, 1)


def adjust_saturation(images_BCHW: Tensor, factor_B111: Tensor) -> Tensor:
    """Blends with the greyscale image."""
    return torch.lerp(grey(images_BCHW).expand_as(images_BCHW), images_BCHW, factor_B111).clamp_(0, 1)


def adjust_hue(images_BCHW: Tensor, shift_B111: Tensor) -> Tensor:
    """Turns the colour circle by a share of a full turn, in [-0.5, 0.5], value and saturation kept (HSV)."""
    value, chroma, hue = _value_chroma_hue(images_BCHW)
    hue = hue + 6 * shift_B111
    # each channel of HSV -> RGB is value - chroma * clamp(min(k, 4 - k), 0, 1) with k = (n + hue) mod 6
    offsets = torch.tensor([5.0, 3.0, 1.0], device=images_BCHW.device).view(1, 3, 1, 1)
    k = hue + offsets
    k.sub_(torch.floor(k / 6), alpha=6)  # k mod 6; several times faster than remainder on CPUs
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)


def _value_chroma_hue(images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value and chroma in [0, 1] and hue in [-1, 5] sixths of the circle, each [B, 1, H, W]."""
    red, green, blue = images_BCHW.unbind(1)
    value = images_BCHW.amax(1)
    chroma = value - images_BCHW.amin(1)
    divisor = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    return value[:, None], chroma[:, None], hue[:, None]


def gaussian_blur(images_BCHW: Tensor, sigma_B111: Tensor) -> Tensor:
    """Blurs each image with its own sigma in pixels; edges are extended. The kernel reaches to three sigmas."""
    radius = min(math.ceil(3 * float(sigma_B111.max())), min(images_BCHW.shape[2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=images_BCHW.device)
    kernel_BK = torch.exp(-0.5 * (offsets / sigma_B111.view(-1, 1)) ** 2)
    kernel_BK = kernel_BK / kernel_BK.sum(1, keepdim=True)
    for axis, pad in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        padded = F.pad(images_BCHW, pad, mode="replicate")
        length = images_BCHW.shape[axis]
        # a sum of shifted slices: on CPUs many times faster than a grouped convolution with one group a sample
        images_BCHW = torch.zeros_like(images_BCHW)
        for tap in range(2 * radius + 1):
            images_BCHW.addcmul_(padded.narrow(axis, tap, length), kernel_BK[:, tap].view(-1, 1, 1, 1))
    return images_BCHW
