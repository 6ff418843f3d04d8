"""The part of the views that runs batched on an accelerator:
colour jitter, greyscale, blur, solarize, normalise.

Flips are made by the host's crop, where they cost nothing. Each operation takes images_BCHW as float in [0,
1] and one parameter a sample, and equals torchvision's operation on a float tensor. Nothing depends on a
value of a sample but by `where`, so `apply_colours` compiles into a few kernels without a synchronisation;
on the CPU `colour_kernels.colour` does the same to one view after another.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.data.images.buffer_pool import BufferPool
from pretrain.data.views import colour_kernels as kernels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_GREY_WEIGHTS = (0.2989, 0.587, 0.114)


def finish_views(
    arrays: Sequence[np.ndarray | Tensor],
    parameters: Sequence[np.ndarray | Tensor] | None,
    *,
    device: torch.device,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    buffer_pool: BufferPool | None = None,
) -> list[Tensor]:
    """Makes float views_BCHW, normalised, on `device`, of uint8 crops [B, C, size, size], one array a view.

    `parameters` are those of `ViewFilling`: what is still to be done to the colours, None for nothing. On
    the CPU the views lie in `buffer_pool`.
    """
    if parameters is None:
        return [normalised(array, device, mean, std, buffer_pool=buffer_pool) for array in arrays]
    views = []
    for array, rows in zip(arrays, parameters, strict=True):
        images = colouring(device)(
            _to_images(array, device), torch.as_tensor(rows).to(device, non_blocking=True)
        )
        views.append(normalise(images, mean, std))
    return views


@functools.cache
def colouring(device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """`apply_colours`, compiled where that pays."""
    return torch.compile(apply_colours, dynamic=False) if device.type == "cuda" else apply_colours


def _to_images(array: np.ndarray | Tensor, device: torch.device) -> Tensor:
    return torch.as_tensor(array).to(device, non_blocking=True).float().div_(255)


def normalised(
    array: np.ndarray | Tensor,
    device: torch.device,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    *,
    buffer_pool: BufferPool | None = None,
) -> Tensor:
    """uint8 [B, C, H, W] on the host or the device -> float32 images_BCHW, (images / 255 - mean) / std,
    on the device.

    On the CPU they lie in `buffer_pool`, for callers that make one batch after another.
    """
    if device.type != "cpu":
        return normalise(_to_images(array, device), mean, std)
    scale_C = 1 / (255 * np.asarray(std, np.float64))
    shift_C = -np.asarray(mean, np.float64) / np.asarray(std, np.float64)
    images_BCHW = (buffer_pool or BufferPool()).array(tuple(array.shape), np.float32)
    kernels.scale_and_shift(
        np.ascontiguousarray(array), scale_C.astype(np.float32), shift_C.astype(np.float32), images_BCHW
    )
    return torch.from_numpy(images_BCHW)


def normalise(
    images_BCHW: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """(images - mean) / std, by channel, in place."""
    device = images_BCHW.device
    return images_BCHW.sub_(channel_values(tuple(mean), device)).div_(channel_values(tuple(std), device))


@lru_cache(maxsize=64)
def channel_values(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A value for each channel, float32 [C, 1, 1];
    kept, because each copy from the host would wait for the device.
    """
    return torch.tensor(values, device=device).view(-1, 1, 1)


def apply_colours(images_BCHW: Tensor, parameters_BP: Tensor, *, max_sigma: float = 2.0) -> Tensor:
    """Jitter in each sample's own order, greyscale, blur and solarize, by the rows of `Colours.rows`.

    All four jitters are computed at each of the four turns and the one that is due is chosen: on an
    accelerator that is cheaper than to sort the samples. Saturation, hue and greyscale are for three
    channels, see `colour_kernels.colour`.
    """
    images, is_colour = images_BCHW, images_BCHW.shape[1] == 3

    def column(number: int) -> Tensor:
        return parameters_BP[:, number].view(-1, 1, 1, 1)

    for turn in range(4):
        operation = column(kernels.FIRST_TURN + turn)
        changed = torch.where(operation == 0, adjust_brightness(images, column(kernels.BRIGHTNESS)), images)
        changed = torch.where(operation == 1, adjust_contrast(images, column(kernels.CONTRAST)), changed)
        if is_colour:
            changed = torch.where(
                operation == 2, adjust_saturation(images, column(kernels.SATURATION)), changed
            )
            changed = torch.where(operation == 3, adjust_hue(images, column(kernels.HUE)), changed)
        images = changed
    if is_colour:
        images = torch.where(column(kernels.GREY) > 0, grey(images), images)
    solarized, first = column(kernels.SOLARIZE) > 0, column(kernels.SOLARIZE_FIRST) > 0
    images = torch.where(solarized & first, solarize(images), images)
    sigma = column(kernels.SIGMA)
    # a sigma near zero leaves an image as it is
    images = torch.where(
        sigma > 0, gaussian_blur(images, sigma.clamp_min(1e-3), max_sigma=max_sigma), images
    )
    return torch.where(solarized & ~first, solarize(images), images)


def solarize(images_BCHW: Tensor) -> Tensor:
    """Inverts what is one half or more."""
    return torch.where(images_BCHW >= 0.5, 1 - images_BCHW, images_BCHW)


def grey(images_BCHW: Tensor) -> Tensor:
    """Luma of ITU-R 601, [B, 1, H, W]."""
    weights_C11 = channel_values(tuple(_GREY_WEIGHTS), images_BCHW.device).to(images_BCHW.dtype)
    return (images_BCHW * weights_C11).sum(1, keepdim=True)


def adjust_brightness(images_BCHW: Tensor, factor_B111: Tensor) -> Tensor:
    """Scales all values."""
    return (images_BCHW * factor_B111).clamp_(0, 1)


def adjust_contrast(images_BCHW: Tensor, factor_B111: Tensor) -> Tensor:
    """Blends with the mean grey of each image; without colours, with the mean of each channel."""
    mean = (grey(images_BCHW) if images_BCHW.shape[1] == 3 else images_BCHW).mean((2, 3), keepdim=True)
    return torch.lerp(mean.expand_as(images_BCHW), images_BCHW, factor_B111).clamp_(0, 1)


def adjust_saturation(images_BCHW: Tensor, factor_B111: Tensor) -> Tensor:
    """Blends with the greyscale image."""
    return torch.lerp(grey(images_BCHW).expand_as(images_BCHW), images_BCHW, factor_B111).clamp_(0, 1)


def adjust_hue(images_BCHW: Tensor, shift_B111: Tensor) -> Tensor:
    """Turns the colour circle by a fraction of a full turn, in [-0.5, 0.5],
    value and saturation kept (HSV).
    """
    value, chroma, hue = _value_chroma_hue(images_BCHW)
    hue = hue + 6 * shift_B111
    # each channel of HSV -> RGB is value - chroma * clamp(min(k, 4 - k), 0, 1) with k = (n + hue) mod 6
    k = hue + channel_values((5.0, 3.0, 1.0), images_BCHW.device)
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


def gaussian_blur(images_BCHW: Tensor, sigma_B111: Tensor, *, max_sigma: float) -> Tensor:
    """Blurs each image with its own sigma in pixels, at most `max_sigma`, out to three sigmas;
    edges are extended.
    """
    radius = min(math.ceil(3 * max_sigma), min(images_BCHW.shape[2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=images_BCHW.device)
    sigma_B1 = sigma_B111.view(-1, 1)
    kernel_BK = torch.exp(-0.5 * (offsets / sigma_B1) ** 2) * (offsets.abs() <= torch.ceil(3 * sigma_B1))
    kernel_BK = kernel_BK / kernel_BK.sum(1, keepdim=True)
    for axis, pad in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        padded = F.pad(images_BCHW, pad, mode="replicate")
        length = images_BCHW.shape[axis]
        # a sum of shifted slices fuses into one kernel; a convolution would need a group for each sample
        blurred = torch.zeros_like(images_BCHW)
        for tap in range(2 * radius + 1):
            blurred = blurred + padded.narrow(axis, tap, length) * kernel_BK[:, tap].view(-1, 1, 1, 1)
        images_BCHW = blurred
    return images_BCHW
