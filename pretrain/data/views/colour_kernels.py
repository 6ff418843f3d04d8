"""Compiled inner loops of colours on the CPU.

All is float32 in [0, 255] without fast-math, and sums have a fixed order,
so a machine makes the same views every time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pretrain.data.images.compiled import compiled

_f32 = np.float32

# columns of the parameters of a view, see `pretrain.data.views.colours.Colours.rows`
FIRST_TURN = 0
BRIGHTNESS = 4
CONTRAST = 5
SATURATION = 6
HUE = 7
GREY = 8
SIGMA = 9
SOLARIZE = 10
SOLARIZE_FIRST = 11
NUM_PARAMETERS = 12
_RED, _GREEN, _BLUE = _f32(0.2989), _f32(0.587), _f32(0.114)
_ZERO, _ONE, _TWO, _FOUR, _SIX = _f32(0), _f32(1), _f32(2), _f32(4), _f32(6)
_SIXTH, _MAX, _HALF = _f32(1 / 6), _f32(255), _f32(0.5)
_LANES = 64  # partial sums; they fix the order of a sum, whatever the vector length


def colour_scratch_floats(channels: int, size: int) -> int:
    """How many float32 `colour` needs to work in."""
    return (channels + 1) * size * size + 2 * size + 64


@compiled
def colour(view_CSS: np.ndarray, parameters: np.ndarray, scratch: np.ndarray) -> None:
    """Jitter in the view's own order, greyscale, blur and solarize, in place on uint8; as
    `pretrain.data.views.augment` on a device.

    Saturation, hue and greyscale are for three channels and do nothing to others;
    contrast then is that of each channel.
    """
    channels, size = view_CSS.shape[0], view_CSS.shape[1]
    num = size * size
    flat = view_CSS.reshape(channels * num)
    values = scratch[: channels * num]
    for i in range(channels * num):
        values[i] = _f32(flat[i])
    planes = values.reshape(channels, num)
    for turn in range(4):
        operation = int(parameters[FIRST_TURN + turn])
        if operation == 0:
            _brighten(values, parameters[BRIGHTNESS])
        elif operation == 1:
            _contrast(planes, parameters[CONTRAST])
        elif operation == 2 and channels == 3:
            _saturate(planes[0], planes[1], planes[2], parameters[SATURATION])
        elif operation == 3 and channels == 3:
            _turn_hue(planes[0], planes[1], planes[2], parameters[HUE])
    if parameters[GREY] > 0 and channels == 3:
        red, green, blue = planes[0], planes[1], planes[2]
        for i in range(num):
            red[i] = green[i] = blue[i] = _RED * red[i] + _GREEN * green[i] + _BLUE * blue[i]
    if parameters[SOLARIZE] > 0 and parameters[SOLARIZE_FIRST] > 0:
        _solarize(values)
    if parameters[SIGMA] > 0:
        for channel in range(channels):
            _blur(planes[channel].reshape(size, size), parameters[SIGMA], scratch[channels * num :])
    if parameters[SOLARIZE] > 0 and parameters[SOLARIZE_FIRST] == 0:
        _solarize(values)
    for i in range(channels * num):
        flat[i] = np.uint8(values[i] + _HALF)


@compiled
def scale_and_shift(
    bytes_BCHW: np.ndarray, scale_C: np.ndarray, shift_C: np.ndarray, out_BCHW: np.ndarray
) -> None:
    """uint8 -> float32 times a scale plus a shift, by channel: one pass where torch takes four."""
    batch, channels, height, width = bytes_BCHW.shape
    for index in range(batch):
        for channel in range(channels):
            scale, shift = scale_C[channel], shift_C[channel]
            source = bytes_BCHW[index, channel].reshape(height * width)
            target = out_BCHW[index, channel].reshape(height * width)
            for i in range(height * width):
                target[i] = _f32(source[i]) * scale + shift


@compiled
def _clamped(value: Any) -> Any:
    return min(max(value, _ZERO), _MAX)


@compiled
def _brighten(values: np.ndarray, factor: float) -> None:
    for i in range(len(values)):
        values[i] = _clamped(values[i] * factor)


@compiled
def _contrast(planes_CN: np.ndarray, factor: float) -> None:
    channels = planes_CN.shape[0]
    if channels == 3:
        mean = _RED * _mean(planes_CN[0]) + _GREEN * _mean(planes_CN[1]) + _BLUE * _mean(planes_CN[2])
        for channel in range(3):
            _blend_with(planes_CN[channel], mean, factor)
    else:
        for channel in range(channels):
            _blend_with(planes_CN[channel], _mean(planes_CN[channel]), factor)


@compiled
def _mean(values: np.ndarray) -> Any:
    sums = np.zeros(_LANES, np.float32)
    whole = len(values) // _LANES * _LANES
    for i in range(0, whole, _LANES):
        for lane in range(_LANES):
            sums[lane] += values[i + lane]
    total = 0.0
    for lane in range(_LANES):
        total += sums[lane]
    for i in range(whole, len(values)):
        total += values[i]
    return _f32(total / len(values))


@compiled
def _blend_with(values: np.ndarray, level: float, factor: float) -> None:
    rest = level * (_ONE - factor)
    for i in range(len(values)):
        values[i] = _clamped(values[i] * factor + rest)


@compiled
def _saturate(red: np.ndarray, green: np.ndarray, blue: np.ndarray, factor: float) -> None:
    rest = _ONE - factor
    for i in range(len(red)):
        grey = (_RED * red[i] + _GREEN * green[i] + _BLUE * blue[i]) * rest
        red[i] = _clamped(red[i] * factor + grey)
        green[i] = _clamped(green[i] * factor + grey)
        blue[i] = _clamped(blue[i] * factor + grey)


@compiled
def _turn_hue(red: np.ndarray, green: np.ndarray, blue: np.ndarray, shift: float) -> None:
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        value = max(r, max(g, b))
        chroma = value - min(r, min(g, b))
        is_red, is_green = value == r, value == g
        difference = g - b if is_red else (b - r if is_green else r - g)
        sector = _ZERO if is_red else (_TWO if is_green else _FOUR)
        hue = sector + difference / (chroma if chroma > _ZERO else _ONE) + _SIX * shift
        red[i] = _of_hue(value, chroma, hue + _f32(5))
        green[i] = _of_hue(value, chroma, hue + _f32(3))
        blue[i] = _of_hue(value, chroma, hue + _ONE)


@compiled
def _of_hue(value: Any, chroma: Any, k: Any) -> Any:
    k = k - _SIX * np.floor(k * _SIXTH)
    return value - chroma * min(max(min(k, _FOUR - k), _ZERO), _ONE)


@compiled
def _solarize(values: np.ndarray) -> None:
    for i in range(len(values)):
        values[i] = _MAX - values[i] if values[i] >= _f32(127.5) else values[i]


@compiled
def _blur(plane_SS: np.ndarray, sigma: float, scratch: np.ndarray) -> None:
    """A Gaussian of `sigma` pixels that reaches to three sigmas; edges are extended."""
    size = plane_SS.shape[0]
    reach = min(math.ceil(3 * sigma), size - 1)
    weights = np.empty(reach + 1, np.float32)
    total = 0.0
    for k in range(reach + 1):
        weights[k] = math.exp(-0.5 * (k / sigma) ** 2)
        total += weights[k] * (1 if k == 0 else 2)
    for k in range(reach + 1):
        weights[k] = _f32(weights[k] / total)

    across = scratch[: size * size].reshape(size, size)
    row = scratch[size * size :]
    for y in range(size):
        source, target = plane_SS[y], across[y]
        for x in range(reach):
            row[x], row[reach + size + x] = source[0], source[size - 1]
        for x in range(size):
            row[reach + x] = source[x]
            target[x] = weights[0] * source[x]
        for k in range(1, reach + 1):
            weight = weights[k]
            before = row[reach - k : reach - k + size]
            after = row[reach + k : reach + k + size]
            for x in range(size):
                target[x] += weight * (before[x] + after[x])
    for y in range(size):
        target, source = plane_SS[y], across[y]
        for x in range(size):
            target[x] = weights[0] * source[x]
        for k in range(1, reach + 1):
            weight, before, after = weights[k], across[max(0, y - k)], across[min(size - 1, y + k)]
            for x in range(size):
                target[x] += weight * (before[x] + after[x])
