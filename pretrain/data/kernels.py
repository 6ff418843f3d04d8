"""Compiled inner loops of the views: where a crop lies, its resampling, and its colours on the CPU.

Compiled by numba on first use and kept beside this file (or in the user's cache folder), so only the first run on a machine
waits for the compiler. All of them release the GIL. Bytes are resampled in 16-bit integers, colours in float32, without
fast-math, so a machine gives the same views every time.

Resampling is antialiased: every output pixel is a triangle-weighted mean of all the pixels under it, as in Pillow and in
torchvision with antialias=True, to within two levels in 255 (weights are 8 bits). Pixels have four bytes here, the fourth
unused: both passes then run along contiguous memory, one over rows of the image and one over rows of its transpose, where
compilers make full use of vector units.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

_compiled: Any = numba.njit(nogil=True, cache=True, error_model="numpy")

_u16, _u32, _f32 = np.uint16, np.uint32, np.float32

# columns of the parameters of a view, see `pretrain.data.augment.Colours.rows`
FIRST_TURN, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, SIGMA, SOLARIZE, SOLARIZE_FIRST = 0, 4, 5, 6, 7, 8, 9, 10, 11
NUM_PARAMETERS = 12
_RED, _GREEN, _BLUE = _f32(0.2989), _f32(0.587), _f32(0.114)
_ZERO, _ONE, _TWO, _FOUR, _SIX = _f32(0), _f32(1), _f32(2), _f32(4), _f32(6)
_SIXTH, _MOST, _HALF = _f32(1 / 6), _f32(255), _f32(0.5)
_LANES = 16  # partial sums; they fix the order of a sum, whatever the vector length


@_compiled
def find_boxes(draws_VA4: np.ndarray, ranges_V4: np.ndarray, width: int, height: int, boxes_V4: np.ndarray) -> None:
    """Crops of an image for all views: left, top, width, height in pixels, as torchvision's RandomResizedCrop finds them.

    `draws_VA4` are uniform in [0, 1): area, log-ratio, left and top of A attempts. `ranges_V4` are the smallest and largest
    share of the area and log-ratio. A crop that does not fit is tried again; after the last attempt the largest central crop
    within the ratios is taken.
    """
    for view in range(draws_VA4.shape[0]):
        low, high, log_low, log_high = ranges_V4[view]
        found = False
        for attempt in range(draws_VA4.shape[1]):
            area_draw, ratio_draw, left_draw, top_draw = draws_VA4[view, attempt]
            area = width * height * (low + (high - low) * area_draw)
            ratio = math.exp(log_low + (log_high - log_low) * ratio_draw)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                boxes_V4[view] = int(left_draw * (width - w + 1)), int(top_draw * (height - h + 1)), w, h
                found = True
                break
        if not found:
            w = min(width, max(1, round(height * math.exp(log_high))))
            h = min(height, max(1, round(width / math.exp(log_low))))
            boxes_V4[view] = (width - w) // 2, (height - h) // 2, w, h


@_compiled
def _find_weights(
    low: float,
    length: float,
    limit: int,
    flip: bool,
    starts_N: np.ndarray,
    counts_N: np.ndarray,
    weights_NK: np.ndarray,
) -> None:
    """Weights (summing to 256) of the input pixels of each output pixel, for `length` pixels from `low` on, of `limit`."""
    num = len(starts_N)
    scale = length / num
    reach = max(scale, 1.0)
    for place in range(num):
        index = num - 1 - place if flip else place
        centre = low + (index + 0.5) * scale
        start = max(0, math.floor(centre - reach + 0.5))
        stop = max(start + 1, min(limit, math.floor(centre + reach + 0.5)))
        if start >= limit:
            start, stop = limit - 1, limit
        total = 0.0
        for k in range(start, stop):
            total += max(0.0, 1.0 - abs(k + 0.5 - centre) / reach)
        # rounded so that the sum is exact: a rounding error goes to the next weight
        reached, given = 0.0, 0
        for k in range(start, stop):
            reached += max(0.0, 1.0 - abs(k + 0.5 - centre) / reach)
            upto = int(reached / total * 256.0 + 0.5) if total > 0 else 256
            weights_NK[place, k - start] = upto - given
            given = upto
        starts_N[place], counts_N[place] = start, stop - start


@_compiled
def _mix_rows(
    rows_RW: np.ndarray,
    starts_N: np.ndarray,
    counts_N: np.ndarray,
    weights_NK: np.ndarray,
    first: int,
    num: int,
    out_NW: np.ndarray,
    sums_W: np.ndarray,
) -> None:
    """Each output row is a weighted sum of neighbouring rows, of `num` bytes from byte `first` on."""
    for i in range(len(starts_N)):
        start, count, out = starts_N[i], counts_N[i], out_NW[i]
        a, wa = rows_RW[start, first : first + num], _u16(weights_NK[i, 0])
        if count == 1:
            for x in range(num):
                out[x] = a[x]
        elif count == 2:
            b, wb = rows_RW[start + 1, first : first + num], _u16(weights_NK[i, 1])
            for x in range(num):
                out[x] = _u16(wa * _u16(a[x]) + wb * _u16(b[x]) + _u16(128)) >> 8
        elif count == 3:
            b, wb = rows_RW[start + 1, first : first + num], _u16(weights_NK[i, 1])
            c, wc = rows_RW[start + 2, first : first + num], _u16(weights_NK[i, 2])
            for x in range(num):
                out[x] = _u16(wa * _u16(a[x]) + wb * _u16(b[x]) + wc * _u16(c[x]) + _u16(128)) >> 8
        elif count == 4:
            b, wb = rows_RW[start + 1, first : first + num], _u16(weights_NK[i, 1])
            c, wc = rows_RW[start + 2, first : first + num], _u16(weights_NK[i, 2])
            d, wd = rows_RW[start + 3, first : first + num], _u16(weights_NK[i, 3])
            for x in range(num):
                out[x] = _u16(wa * _u16(a[x]) + wb * _u16(b[x]) + wc * _u16(c[x]) + wd * _u16(d[x]) + _u16(128)) >> 8
        else:
            for x in range(num):
                sums_W[x] = _u16(wa * _u16(a[x]) + _u16(128))
            for k in range(1, count):
                b, wb = rows_RW[start + k, first : first + num], _u16(weights_NK[i, k])
                for x in range(num):
                    sums_W[x] = _u16(sums_W[x] + wb * _u16(b[x]))
            for x in range(num):
                out[x] = sums_W[x] >> 8


@_compiled
def _transpose(source_HW: np.ndarray, target_WH: np.ndarray, height: int, width: int) -> None:
    """Pixels (four bytes each) in blocks of eight by eight, which stay in registers."""
    whole_height, whole_width = height // 8 * 8, width // 8 * 8
    for top in range(0, whole_height, 8):
        for left in range(0, whole_width, 8):
            for x in range(8):
                for y in range(8):
                    target_WH[left + x, top + y] = source_HW[top + y, left + x]
        for x in range(whole_width, width):
            for y in range(8):
                target_WH[x, top + y] = source_HW[top + y, x]
    for y in range(whole_height, height):
        for x in range(width):
            target_WH[x, y] = source_HW[y, x]


def crop_scratch_pixels(image_width: int, size: int) -> int:
    """How many uint32 `crop` needs to work in."""
    return 2 * size * image_width + 2 * size * size + 2 * max(image_width, size)


@_compiled
def crop(
    pixels_HW4: np.ndarray,
    left: float,
    top: float,
    width: float,
    height: float,
    flip: bool,
    out_CSS: np.ndarray,
    scratch: np.ndarray,
) -> None:
    """Resamples a part of an image to a square of S pixels, one plane a channel; C is at most 4.

    Args:
        pixels_HW4: uint8.
        left, top, width, height: in pixels, fractions allowed.
        flip: mirrors left and right; costs nothing here.
        out_CSS: uint8.
        scratch: uint32, at least `crop_scratch_pixels(W, S)`.
    """
    image_height, image_width = pixels_HW4.shape[0], pixels_HW4.shape[1]
    size = out_CSS.shape[1]
    starts_x, counts_x = np.empty(size, np.int32), np.empty(size, np.int32)
    starts_y, counts_y = np.empty(size, np.int32), np.empty(size, np.int32)
    weights_x = np.empty((size, int(2 * max(1.0, width / size)) + 3), np.uint16)
    weights_y = np.empty((size, int(2 * max(1.0, height / size)) + 3), np.uint16)
    _find_weights(left, width, image_width, flip, starts_x, counts_x, weights_x)
    _find_weights(top, height, image_height, False, starts_y, counts_y, weights_y)
    first, last = image_width, 0
    for index in range(size):
        first, last = min(first, starts_x[index]), max(last, starts_x[index] + counts_x[index])
    num = last - first
    for index in range(size):
        starts_x[index] -= first

    # rows of the image -> transpose -> rows of the transpose -> transpose back
    across = scratch[: size * num]
    turned = scratch[size * num : 2 * size * num]
    done_turned = scratch[2 * size * num : 2 * size * num + size * size]
    done = scratch[2 * size * num + size * size : 2 * size * num + 2 * size * size]
    sums = scratch[2 * size * num + 2 * size * size :].view(np.uint16)
    image_rows = pixels_HW4.reshape(image_height, image_width * 4)
    _mix_rows(
        image_rows,
        starts_y,
        counts_y,
        weights_y,
        first * 4,
        num * 4,
        across.view(np.uint8).reshape(size, num * 4),
        sums,
    )
    _transpose(across.reshape(size, num), turned.reshape(num, size), size, num)
    _mix_rows(
        turned.view(np.uint8).reshape(num, size * 4),
        starts_x,
        counts_x,
        weights_x,
        0,
        size * 4,
        done_turned.view(np.uint8).reshape(size, size * 4),
        sums,
    )
    _transpose(done_turned.reshape(size, size), done.reshape(size, size), size, size)
    for channel in range(out_CSS.shape[0]):
        plane, shift = out_CSS[channel].reshape(size * size), _u32(8 * channel)
        for i in range(size * size):
            plane[i] = (done[i] >> shift) & _u32(255)


def colour_scratch_floats(channels: int, size: int) -> int:
    """How many float32 `colour` needs to work in."""
    return (channels + 1) * size * size + 2 * size + 64


@_compiled
def colour(view_CSS: np.ndarray, parameters: np.ndarray, scratch: np.ndarray) -> None:
    """Jitter in the view's own order, greyscale, blur and solarize, in place on uint8; as `pretrain.data.augment` on a device.

    Saturation, hue and greyscale are for three channels and do nothing to others; contrast then is that of each channel.
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


@_compiled
def _clamped(value: Any) -> Any:
    return min(max(value, _ZERO), _MOST)


@_compiled
def _brighten(values: np.ndarray, factor: float) -> None:
    for i in range(len(values)):
        values[i] = _clamped(values[i] * factor)


@_compiled
def _contrast(planes_CN: np.ndarray, factor: float) -> None:
    channels = planes_CN.shape[0]
    if channels == 3:
        mean = _RED * _mean(planes_CN[0]) + _GREEN * _mean(planes_CN[1]) + _BLUE * _mean(planes_CN[2])
        for channel in range(3):
            _blend_with(planes_CN[channel], mean, factor)
    else:
        for channel in range(channels):
            _blend_with(planes_CN[channel], _mean(planes_CN[channel]), factor)


@_compiled
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


@_compiled
def _blend_with(values: np.ndarray, level: float, factor: float) -> None:
    rest = level * (_ONE - factor)
    for i in range(len(values)):
        values[i] = _clamped(values[i] * factor + rest)


@_compiled
def _saturate(red: np.ndarray, green: np.ndarray, blue: np.ndarray, factor: float) -> None:
    rest = _ONE - factor
    for i in range(len(red)):
        grey = (_RED * red[i] + _GREEN * green[i] + _BLUE * blue[i]) * rest
        red[i] = _clamped(red[i] * factor + grey)
        green[i] = _clamped(green[i] * factor + grey)
        blue[i] = _clamped(blue[i] * factor + grey)


@_compiled
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


@_compiled
def _of_hue(value: Any, chroma: Any, k: Any) -> Any:
    k = k - _SIX * np.floor(k * _SIXTH)
    return value - chroma * min(max(min(k, _FOUR - k), _ZERO), _ONE)


@_compiled
def _solarize(values: np.ndarray) -> None:
    for i in range(len(values)):
        values[i] = _MOST - values[i] if values[i] >= _f32(127.5) else values[i]


@_compiled
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
            weight, before, after = weights[k], row[reach - k : reach - k + size], row[reach + k : reach + k + size]
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
