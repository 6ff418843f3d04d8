"""Compiled inner loops of crops: where one lies, and its resampling.

Bytes are resampled in integers, so every machine makes the same views.

Resampling is antialiased: every output pixel is a triangle-weighted (or cubic-weighted) mean of all the pixels under it, as in
Pillow and in torchvision with antialias=True, to within two levels in 255. Pixels have four bytes here, the fourth unused: both
passes then run along contiguous memory, one over rows of the image and one over rows of its transpose, where compilers make
full use of vector units.
"""

from __future__ import annotations

import math

import numpy as np

from pretrain.data.compiled import compiled

_u16, _u32, _i32 = np.uint16, np.uint32, np.int32

NARROW_BITS, WIDE_BITS = 8, 14  # of weights; 8 let a weighted sum of bytes fit into 16 bits
MOST_NARROW = 4  # a crop that shrinks by more has too many weights for 8 bits


@compiled
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


@compiled
def _filter(distance: float, cubic: bool) -> float:
    """Weight of a pixel at a distance of so many (output) pixels: a triangle, or Keys' cubic with a = -0.5."""
    x = abs(distance)
    if not cubic:
        return max(0.0, 1.0 - x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 if x < 2.0 else 0.0


@compiled
def _find_weights(
    low: float,
    length: float,
    limit: int,
    flip: bool,
    cubic: bool,
    bits: int,
    starts_N: np.ndarray,
    counts_N: np.ndarray,
    weights_NK: np.ndarray,
) -> None:
    """Weights (summing to 2 ** bits) of the input pixels of each output pixel: `length` pixels from `low` on, of `limit`."""
    num = len(starts_N)
    scale = length / num
    stretch = max(scale, 1.0)
    reach = 2 * stretch if cubic else stretch
    for place in range(num):
        index = num - 1 - place if flip else place
        centre = low + (index + 0.5) * scale
        start = min(max(0, math.floor(centre - reach + 0.5)), limit - 1)
        stop = max(start + 1, min(limit, math.floor(centre + reach + 0.5)))
        total = 0.0
        for k in range(start, stop):
            total += _filter((k + 0.5 - centre) / stretch, cubic)
        # rounded so that the sum is exact: a rounding error goes to the next weight
        reached, given = 0.0, 0
        for k in range(start, stop):
            reached += _filter((k + 0.5 - centre) / stretch, cubic)
            upto = math.floor(reached / total * (1 << bits) + 0.5) if total > 0 else 1 << bits
            weights_NK[place, k - start] = upto - given
            given = upto
        starts_N[place], counts_N[place] = start, stop - start


@compiled
def _mix_rows_wide(
    rows_RW: np.ndarray,
    starts_N: np.ndarray,
    counts_N: np.ndarray,
    weights_NK: np.ndarray,
    first: int,
    num: int,
    out_NW: np.ndarray,
    sums_W: np.ndarray,
) -> None:
    """`_mix_rows` for weights that are below zero, or many and small: wider sums, brought back into [0, 255]."""
    for i in range(len(starts_N)):
        out = out_NW[i]
        for x in range(num):
            sums_W[x] = 1 << (WIDE_BITS - 1)
        for k in range(counts_N[i]):
            row, weight = rows_RW[starts_N[i] + k, first : first + num], _i32(weights_NK[i, k])
            for x in range(num):
                sums_W[x] = _i32(sums_W[x] + weight * _i32(row[x]))
        for x in range(num):
            out[x] = min(max(sums_W[x] >> WIDE_BITS, 0), 255)


@compiled
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


@compiled
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
    return 2 * size * image_width + 2 * size * size + 4 * max(image_width, size)


@compiled
def crop(
    pixels_HW4: np.ndarray,
    left: float,
    top: float,
    width: float,
    height: float,
    flip: bool,
    cubic: bool,
    out_CSS: np.ndarray,
    scratch: np.ndarray,
) -> None:
    """Resamples a part of an image to a square of S pixels, one plane a channel; C is at most 4.

    Args:
        pixels_HW4: uint8.
        left, top, width, height: in pixels, fractions allowed.
        flip: mirrors left and right; costs nothing here.
        cubic: a sharper filter, at two to three times the cost.
        out_CSS: uint8.
        scratch: uint32, at least `crop_scratch_pixels(W, S)`.
    """
    image_height, image_width = pixels_HW4.shape[0], pixels_HW4.shape[1]
    size = out_CSS.shape[1]
    starts_x, counts_x = np.empty(size, np.int32), np.empty(size, np.int32)
    starts_y, counts_y = np.empty(size, np.int32), np.empty(size, np.int32)
    taps = 4 if cubic else 2
    weights_x = np.empty((size, int(taps * max(1.0, width / size)) + 3), np.int16)
    weights_y = np.empty((size, int(taps * max(1.0, height / size)) + 3), np.int16)
    wide = cubic or max(width, height) > MOST_NARROW * size
    bits = WIDE_BITS if wide else NARROW_BITS
    _find_weights(left, width, image_width, flip, cubic, bits, starts_x, counts_x, weights_x)
    _find_weights(top, height, image_height, False, cubic, bits, starts_y, counts_y, weights_y)
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
    sums = scratch[2 * size * num + 2 * size * size :]
    image_rows = pixels_HW4.reshape(image_height, image_width * 4)
    across_rows, turned_rows = (
        across.view(np.uint8).reshape(size, num * 4),
        turned.view(np.uint8).reshape(num, size * 4),
    )
    done_rows = done_turned.view(np.uint8).reshape(size, size * 4)
    if wide:
        totals = sums.view(np.int32)
        _mix_rows_wide(image_rows, starts_y, counts_y, weights_y, first * 4, num * 4, across_rows, totals)
        _transpose(across.reshape(size, num), turned.reshape(num, size), size, num)
        _mix_rows_wide(turned_rows, starts_x, counts_x, weights_x, 0, size * 4, done_rows, totals)
    else:
        narrow = sums.view(np.uint16)
        _mix_rows(image_rows, starts_y, counts_y, weights_y, first * 4, num * 4, across_rows, narrow)
        _transpose(across.reshape(size, num), turned.reshape(num, size), size, num)
        _mix_rows(turned_rows, starts_x, counts_x, weights_x, 0, size * 4, done_rows, narrow)
    _transpose(done_turned.reshape(size, size), done.reshape(size, size), size, size)
    for channel in range(out_CSS.shape[0]):
        plane, shift = out_CSS[channel].reshape(size * size), _u32(8 * channel)
        for i in range(size * size):
            plane[i] = (done[i] >> shift) & _u32(255)
