"""Compiled inner loops of crops: where one lies, and its resampling.

Bytes are resampled in integers, so every machine makes the same views.

Resampling is antialiased: every output pixel is a triangle-weighted (or cubic-weighted) mean of all the
pixels under it, as in Pillow and in torchvision with antialias=True, to within two levels in 255. Pixels
have four bytes here, the fourth unused: both passes then run along contiguous memory, one over rows of the
image and one over rows of its transpose, where compilers make full use of vector units. A crop is made in
strips of some lines, so that all but the image itself stays in a near cache.

Rows are addressed in flat arrays by unsigned numbers: a slice for each row, or an index that might be
negative, would cost more than the arithmetic on it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pretrain.data.images.compiled import compiled

_u16, _u64, _i16, _i32 = np.uint16, np.uint64, np.int16, np.int32

# of weights; with 8, or 7 where some are below zero, a weighted sum of bytes fits into 16 bits
NARROW_BITS, CUBIC_BITS, WIDE_BITS = 8, 7, 14
MAX_NARROW = 4  # a crop that shrinks by more has too many weights for so few bits
# a cubic filter leaves [0, 255] by up to an eighth on both sides, so its sums start at 64 levels,
# and at half a level
_CUBIC_SPARE, _CUBIC_START = _i16(64), _u16(64 * 2**CUBIC_BITS + 2 ** (CUBIC_BITS - 1))
STRIP = 112  # lines at most, in eights


@compiled
def find_boxes(
    draws_VA4: np.ndarray, ranges_V4: np.ndarray, width: int, height: int, boxes_V4: np.ndarray
) -> None:
    """Crops of an image for all views: left, top, width, height in pixels,
    as torchvision's RandomResizedCrop finds them.

    `draws_VA4` are uniform in [0, 1): area, log-ratio, left and top of A attempts. `ranges_V4` are the
    smallest and largest fraction of the area and log-ratio. A crop that does not fit is tried again; after
    the last attempt the largest central crop within the ratios is taken.
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
                left, top = int(left_draw * (width - w + 1)), int(top_draw * (height - h + 1))
                found = True
                break
        if not found:
            w = min(width, max(1, round(height * math.exp(log_high))))
            h = min(height, max(1, round(width / math.exp(log_low))))
            left, top = (width - w) // 2, (height - h) // 2
        # one by one: assigned as a row, numba compiles how texts of errors are put together, for 3 seconds
        boxes_V4[view, 0], boxes_V4[view, 1], boxes_V4[view, 2], boxes_V4[view, 3] = left, top, w, h


@compiled
def place_crops(
    draws_VA4: np.ndarray,
    ranges_V4: np.ndarray,
    width: int,
    height: int,
    boxes_V4: np.ndarray,
    geometry_V5: np.ndarray,
) -> None:
    """`find_boxes`, with left, top, right, bottom, as shares of the sides, first in `geometry_V5`."""
    find_boxes(draws_VA4, ranges_V4, width, height, boxes_V4)
    for view in range(boxes_V4.shape[0]):
        left, top, w, h = boxes_V4[view]
        geometry_V5[view, 0], geometry_V5[view, 1] = left / width, top / height
        geometry_V5[view, 2], geometry_V5[view, 3] = (left + w) / width, (top + h) / height


@compiled
def _filter(distance: float, cubic: bool) -> float:
    """Weight of a pixel at a distance in (output) pixels: a triangle, or Keys' cubic with a = -0.5."""
    x = abs(distance)
    if not cubic:
        return max(0.0, 1.0 - x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 if x < 2.0 else 0.0


@compiled
def find_weights(
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
    """Weights (summing to 2 ** bits) of the input pixels of each output pixel:
    `length` pixels from `low` on, of `limit`.
    """
    num = len(starts_N)
    scale = length / num
    stretch = max(scale, 1.0)
    reach = 2 * stretch if cubic else stretch
    exact = np.empty(weights_NK.shape[1])
    for slot in range(num):
        index = num - 1 - slot if flip else slot
        centre = low + (index + 0.5) * scale
        start = min(max(0, math.floor(centre - reach + 0.5)), limit - 1)
        stop = max(start + 1, min(limit, math.floor(centre + reach + 0.5)))
        total = 0.0
        for k in range(start, stop):
            exact[k - start] = _filter((k + 0.5 - centre) / stretch, cubic)
            total += exact[k - start]
        # rounded so that the sum is exact: a rounding error goes to the next weight
        reached, given = 0.0, 0
        for k in range(start, stop):
            reached += exact[k - start]
            upto = math.floor(reached / total * (1 << bits) + 0.5) if total > 0 else 1 << bits
            weights_NK[slot, k - start] = upto - given
            given = upto
        starts_N[slot], counts_N[slot] = start, stop - start


@compiled
def mix_rows_wide(
    rows_RW: np.ndarray,
    starts_N: np.ndarray,
    counts_N: np.ndarray,
    weights_NK: np.ndarray,
    first: int,
    num_bytes: int,
    out_NW: np.ndarray,
    sums_W: np.ndarray,
) -> None:
    """`mix_rows` for many small weights: wider sums, brought back into [0, 255]."""
    rows, out, num = rows_RW.reshape(rows_RW.size), out_NW.reshape(out_NW.size), _u64(num_bytes)
    width, out_width = _u64(rows_RW.shape[1]), _u64(out_NW.shape[1])
    for i in range(len(starts_N)):
        row, to = _u64(starts_N[i]) * width + _u64(first), _u64(i) * out_width
        for x in range(num):
            sums_W[x] = 1 << (WIDE_BITS - 1)
        for k in range(counts_N[i]):
            weight = _i32(weights_NK[i, k])
            for x in range(num):
                sums_W[x] = _i32(sums_W[x] + weight * _i32(rows[row + x]))
            row += width
        for x in range(num):
            out[to + x] = min(max(sums_W[x] >> WIDE_BITS, 0), 255)


@compiled
def _add_rows(
    rows: np.ndarray,
    row: Any,
    width: Any,
    weights_K: np.ndarray,
    first: int,
    count: int,
    num: Any,
    sums_W: np.ndarray,
) -> None:
    """Adds up to four rows, from byte `row` on, by their weights from `first` on; others count 0."""
    b, c, d, wa, wb, wc, wd = row, row, row, _u16(weights_K[first]), _u16(0), _u16(0), _u16(0)
    if first + 1 < count:
        b, wb = row + width, _u16(weights_K[first + 1])
    if first + 2 < count:
        c, wc = row + _u64(2) * width, _u16(weights_K[first + 2])
    if first + 3 < count:
        d, wd = row + _u64(3) * width, _u16(weights_K[first + 3])
    for x in range(num):
        sums_W[x] = _u16(
            sums_W[x]
            + wa * _u16(rows[row + x])
            + wb * _u16(rows[b + x])
            + wc * _u16(rows[c + x])
            + wd * _u16(rows[d + x])
        )


@compiled
def mix_rows(
    rows_RW: np.ndarray,
    starts_N: np.ndarray,
    counts_N: np.ndarray,
    weights_NK: np.ndarray,
    first: int,
    num_bytes: int,
    cubic: bool,
    out_NW: np.ndarray,
    sums_W: np.ndarray,
) -> None:
    """Each output row is a weighted sum of neighbouring rows, of `num_bytes` bytes from byte `first` on."""
    rows = rows_RW.reshape(rows_RW.size)
    out = out_NW.reshape(out_NW.size)
    num = _u64(num_bytes)
    half = _u16(128)
    width, out_width = _u64(rows_RW.shape[1]), _u64(out_NW.shape[1])
    for i in range(len(starts_N)):
        count, to, row = counts_N[i], _u64(i) * out_width, _u64(starts_N[i]) * width + _u64(first)
        b, c, d = row + width, row + _u64(2) * width, row + _u64(3) * width
        wa = _u16(weights_NK[i, 0])
        wb = _u16(weights_NK[i, 1])
        wc = _u16(weights_NK[i, 2])
        wd = _u16(weights_NK[i, 3])
        if count == 1:
            for x in range(num):
                out[to + x] = rows[row + x]
        elif count == 2 and not cubic:
            for x in range(num):
                out[to + x] = _u16(wa * _u16(rows[row + x]) + wb * _u16(rows[b + x]) + half) >> 8
        elif count == 3 and not cubic:
            for x in range(num):
                out[to + x] = (
                    _u16(wa * _u16(rows[row + x]) + wb * _u16(rows[b + x]) + wc * _u16(rows[c + x]) + half)
                    >> 8
                )
        elif count == 4 and not cubic:
            for x in range(num):
                first_two = _u16(wa * _u16(rows[row + x]) + wb * _u16(rows[b + x]) + half)
                out[to + x] = _u16(first_two + wc * _u16(rows[c + x]) + wd * _u16(rows[d + x])) >> 8
        else:
            for x in range(num):
                sums_W[x] = _CUBIC_START if cubic else half
            for k in range(0, count, 4):
                _add_rows(rows, row, width, weights_NK[i], k, count, num, sums_W)
                row += _u64(4) * width
            if cubic:
                for x in range(num):
                    value = _i16(_i16(_u16(sums_W[x]) >> _u16(CUBIC_BITS)) - _CUBIC_SPARE)
                    out[to + x] = np.uint8(min(max(value, _i16(0)), _i16(255)))
            else:
                for x in range(num):
                    out[to + x] = sums_W[x] >> 8


@compiled
def transpose(source_HW: np.ndarray, target_WH: np.ndarray, height: int, width: int) -> None:
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


@compiled
def _split(pixels: np.ndarray, out_CSS: np.ndarray, top: int, bottom: int) -> None:
    """Channels (every fourth byte) into lines [top, bottom) of the planes."""
    channels, size = out_CSS.shape[0], out_CSS.shape[1]
    start, num = top * size, (bottom - top) * size
    planes = out_CSS.reshape(channels, size * size)[:, start : start + num]
    if channels == 3:  # at once, in half the time
        red, green, blue = planes[0], planes[1], planes[2]
        for i in range(num):
            red[i], green[i], blue[i] = pixels[4 * i], pixels[4 * i + 1], pixels[4 * i + 2]
    else:
        for channel in range(channels):
            plane = planes[channel]
            for i in range(num):
                plane[i] = pixels[4 * i + channel]


def crop_scratch_pixels(image_width: int, size: int) -> int:
    """How many uint32 `crop` needs to work in."""
    return 2 * STRIP * (image_width + size) + 4 * max(image_width, STRIP)


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
    weights_x = np.empty((size, int(taps * max(1.0, width / size)) + 4), np.int16)
    weights_y = np.empty((size, int(taps * max(1.0, height / size)) + 4), np.int16)
    wide = max(width, height) > MAX_NARROW * size
    bits = WIDE_BITS if wide else CUBIC_BITS if cubic else NARROW_BITS
    find_weights(left, width, image_width, flip, cubic, bits, starts_x, counts_x, weights_x)
    find_weights(top, height, image_height, False, cubic, bits, starts_y, counts_y, weights_y)
    first, last = image_width, 0
    for index in range(size):
        first, last = min(first, starts_x[index]), max(last, starts_x[index] + counts_x[index])
    num = last - first
    for index in range(size):
        starts_x[index] -= first

    # lines of the image -> transpose -> rows of the transpose -> transpose back;
    # in even strips, for each is made whole
    num_strips = -(-size // STRIP)
    strip = -(-size // (num_strips * 8)) * 8
    middle, end = strip * (2 * num + size), 2 * strip * (num + size)
    across = scratch[: strip * num]
    turned = scratch[strip * num : 2 * strip * num]
    mixed = scratch[2 * strip * num : middle]
    done, sums = scratch[middle:end], scratch[end:]
    image_rows = pixels_HW4.reshape(image_height, image_width * 4)
    across_rows = across.view(np.uint8).reshape(strip, num * 4)
    turned_rows = turned.view(np.uint8).reshape(num, strip * 4)
    mixed_rows = mixed.view(np.uint8).reshape(size, strip * 4)
    totals, narrow = sums.view(np.int32), sums.view(np.uint16)
    for y in range(0, size, strip):
        # where fewer lines are left, what stands below them is resampled along and not used
        stop = min(y + strip, size)
        starts, counts, weights = starts_y[y:stop], counts_y[y:stop], weights_y[y:stop]
        if wide:
            mix_rows_wide(image_rows, starts, counts, weights, first * 4, num * 4, across_rows, totals)
        else:
            mix_rows(image_rows, starts, counts, weights, first * 4, num * 4, cubic, across_rows, narrow)
        transpose(across.reshape(strip, num), turned.reshape(num, strip), strip, num)
        if wide:
            mix_rows_wide(turned_rows, starts_x, counts_x, weights_x, 0, strip * 4, mixed_rows, totals)
        else:
            mix_rows(turned_rows, starts_x, counts_x, weights_x, 0, strip * 4, cubic, mixed_rows, narrow)
        transpose(mixed.reshape(size, strip), done.reshape(strip, size), size, strip)
        _split(done.view(np.uint8), out_CSS, y, stop)
