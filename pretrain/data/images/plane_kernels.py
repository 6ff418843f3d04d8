"""Compiled inner loops of images that are stored decoded:
to planes, from planes to pixels, and crops straight out of planes.

Luma and colours are those of JFIF (ITU-T T.871). Colours at half the resolution are
repeated for the pixels they belong to.

Crops are resampled plane by plane, with one and a half bytes for a pixel where `crop_kernels.crop` has four,
and only the view is converted to red, green and blue. The weights of a line of colours are the sums of those
of the two lines that it stands for, so this gives what `crop` gives of the converted image, but for
rounding, and for colours that leave [0, 255] in between.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pretrain.data.images.compiled import compiled
from pretrain.data.images.crop_kernels import (
    CUBIC_BITS,
    MAX_NARROW,
    NARROW_BITS,
    WIDE_BITS,
    find_weights,
    mix_rows,
    mix_rows_wide,
    transpose,
)

_u32, _i16 = np.uint32, np.int16
# to luma and colours, times 2 ** 16
_Y_R, _Y_G, _Y_B, _HALF = 19595, 38470, 7471, 32768
_CB_R, _CB_G, _CR_G, _CR_B = 11059, 21709, 27439, 5329
# and back: 1.402 - 1, 1.772 - 2, 1 - 0.71414 and -0.34414, times 256; so a product fits into 16 bits
_R_CR, _B_CB, _G_CR, _G_CB = _i16(103), _i16(-58), _i16(73), _i16(-88)
_ROUND = _i16(128)
STRIP = 112  # lines that are resampled at once, so that they stay in the nearest cache; in fours


@compiled
def split_colours(
    pixels_HWC: np.ndarray, luma_HW: np.ndarray, blue_hw: np.ndarray, red_hw: np.ndarray
) -> None:
    """RGB to luma and, of blocks of two by two pixels (fewer at odd edges), the mean colours."""
    height, width = luma_HW.shape
    for y in range(height):
        for x in range(width):
            r, g, b = pixels_HWC[y, x, 0], pixels_HWC[y, x, 1], pixels_HWC[y, x, 2]
            luma_HW[y, x] = (_Y_R * r + _Y_G * g + _Y_B * b + _HALF) >> 16
    for block_y in range(blue_hw.shape[0]):
        for block_x in range(blue_hw.shape[1]):
            r, g, b, num = 0, 0, 0, 0
            for y in range(2 * block_y, min(2 * block_y + 2, height)):
                for x in range(2 * block_x, min(2 * block_x + 2, width)):
                    r += pixels_HWC[y, x, 0]
                    g += pixels_HWC[y, x, 1]
                    b += pixels_HWC[y, x, 2]
                    num += 1
            blue = 128 + math.floor((_HALF * b - _CB_R * r - _CB_G * g) / (num << 16) + 0.5)
            red = 128 + math.floor((_HALF * r - _CR_G * g - _CR_B * b) / (num << 16) + 0.5)
            blue_hw[block_y, block_x], red_hw[block_y, block_x] = min(blue, 255), min(red, 255)


@compiled
def _repeat(half_W: np.ndarray, first: int, whole_W: np.ndarray) -> None:
    """Each value twice, from the second of a pair on where `first` is 1."""
    for x in range(len(whole_W)):
        whole_W[x] = half_W[(x + first) >> 1]


@compiled
def _byte(whole: Any, rest: Any) -> Any:
    """A number and 256 times another, rounded, within a byte.
    Where no width is named numba takes 64 bits, twice the time.
    """
    return min(max(_i16(whole + _i16(_i16(rest + _ROUND) >> _i16(8))), _i16(0)), _i16(255))


@compiled
def _red(y: Any, cr: Any) -> Any:
    red = _i16(_i16(cr) - _i16(128))
    return _byte(_i16(_i16(y) + red), _i16(_R_CR * red))


@compiled
def _green(y: Any, cb: Any, cr: Any) -> Any:
    blue, red = _i16(_i16(cb) - _i16(128)), _i16(_i16(cr) - _i16(128))
    return _byte(_i16(_i16(y) - red), _i16(_i16(_G_CR * red) + _i16(_G_CB * blue)))


@compiled
def _blue(y: Any, cb: Any) -> Any:
    blue = _i16(_i16(cb) - _i16(128))
    return _byte(_i16(_i16(y) + _i16(_i16(2) * blue)), _i16(_B_CB * blue))


@compiled
def _to_planes(
    luma_W: np.ndarray, blue_W: np.ndarray, red_W: np.ndarray, r_W: Any, g_W: Any, b_W: Any
) -> None:
    """A line of luma and colours to lines of red, green and blue;
    one after the other, for compilers give up on six arrays.
    """
    for x in range(len(r_W)):
        r_W[x] = _red(luma_W[x], red_W[x])
    for x in range(len(r_W)):
        g_W[x] = _green(luma_W[x], blue_W[x], red_W[x])
    for x in range(len(r_W)):
        b_W[x] = _blue(luma_W[x], blue_W[x])


@compiled
def _to_pixels(luma_W: np.ndarray, blue_W: np.ndarray, red_W: np.ndarray, out_W: np.ndarray) -> None:
    """A line of luma and colours to uint32 pixels, whose bytes are red, green, blue and 0."""
    for x in range(len(out_W)):
        y, cb, cr = luma_W[x], blue_W[x], red_W[x]
        out_W[x] = _u32(_red(y, cr)) | _u32(_green(y, cb, cr)) << _u32(8) | _u32(_blue(y, cb)) << _u32(16)


@compiled
def join_colours(luma_HW: np.ndarray, blue_hw: np.ndarray, red_hw: np.ndarray, out_HW: np.ndarray) -> None:
    """Planes of 4:2:0 to uint32 pixels."""
    height, width = luma_HW.shape
    colours = np.empty((2, width), np.uint8)
    for y in range(height):
        _repeat(blue_hw[y >> 1], 0, colours[0])
        _repeat(red_hw[y >> 1], 0, colours[1])
        _to_pixels(luma_HW[y], colours[0], colours[1], out_HW[y])


@compiled
def join_planes(red: np.ndarray, green: np.ndarray, blue: np.ndarray, out: np.ndarray) -> None:
    """Flat planes of RGB to uint32 pixels."""
    for x in range(len(out)):
        out[x] = _u32(red[x]) | _u32(green[x]) << _u32(8) | _u32(blue[x]) << _u32(16)


@compiled
def _weights_of_colours(
    starts_N: np.ndarray, counts_N: np.ndarray, weights_NK: np.ndarray
) -> tuple[Any, Any, Any]:
    """Weights of lines of half the resolution, each of which stands for two."""
    num = len(starts_N)
    starts, counts = np.empty(num, np.int32), np.empty(num, np.int32)
    weights = np.zeros((num, (weights_NK.shape[1] >> 1) + 4), np.int16)
    for slot in range(num):
        starts[slot] = starts_N[slot] >> 1
        for k in range(counts_N[slot]):
            weights[slot, ((starts_N[slot] + k) >> 1) - starts[slot]] += weights_NK[slot, k]
        counts[slot] = ((starts_N[slot] + counts_N[slot] - 1) >> 1) - starts[slot] + 1
    return starts, counts, weights


def plane_scratch_pixels(image_width: int, size: int) -> int:
    """How many uint32 `crop_planes` needs to work in."""
    quads = (size + 3) // 4
    return 3 * quads * (size + STRIP) + STRIP * image_width + 2 * STRIP * quads + image_width + STRIP


@compiled
def _turn(source_LW: np.ndarray, scratch: np.ndarray, target_WL: np.ndarray) -> None:
    """The transpose of a plane of bytes, lines of a multiple of four, by uint32 of neighbours."""
    num_lines, width = source_LW.shape
    num_quads = num_lines >> 2
    quads = scratch[: num_quads * width].reshape(num_quads, width)
    for quad in range(num_quads):
        a = source_LW[4 * quad]
        b = source_LW[4 * quad + 1]
        c = source_LW[4 * quad + 2]
        d = source_LW[4 * quad + 3]
        line = quads[quad]
        for x in range(width):
            line[x] = _u32(a[x]) | _u32(b[x]) << _u32(8) | _u32(c[x]) << _u32(16) | _u32(d[x]) << _u32(24)
    transpose(quads, target_WL, num_quads, width)


@compiled
def _crop_plane(
    plane_HW: np.ndarray,
    down: Any,
    along: Any,
    wide: Any,
    cubic: bool,
    first: int,
    num: int,
    out_SQ: np.ndarray,
    strip: int,
    scratch: Any,
) -> None:
    """Resamples columns [first, first + num) of a plane by the weights of lines and
    columns: uint8 into uint32 of four columns.

    `wide`: whether weights of lines, and of columns, are many.
    """
    starts_y, counts_y, weights_y = down
    starts_x, counts_x, weights_x = along
    size, quads = len(starts_y), out_SQ.shape[1]
    at = strip * num >> 2
    lines = scratch[:at].view(np.uint8).reshape(strip, num)
    turned = scratch[at : 2 * at].reshape(num, strip >> 2)
    stop = 2 * at + strip * quads
    columns, rest = scratch[2 * at : stop].view(np.uint8).reshape(4 * quads, strip), scratch[stop:]
    totals, narrow = rest.view(np.int32), rest.view(np.uint16)
    turned_lines = turned.view(np.uint8).reshape(num, strip)
    for y in range(0, size, strip):
        # where fewer lines are left, what stands below them is resampled along and not used
        here = slice(y, min(y + strip, size))
        if wide[0]:
            mix_rows_wide(
                plane_HW, starts_y[here], counts_y[here], weights_y[here], first, num, lines, totals
            )
        else:
            mix_rows(
                plane_HW, starts_y[here], counts_y[here], weights_y[here], first, num, cubic, lines, narrow
            )
        _turn(lines, rest, turned)
        if wide[1]:
            mix_rows_wide(turned_lines, starts_x, counts_x, weights_x, 0, strip, columns, totals)
        else:
            mix_rows(turned_lines, starts_x, counts_x, weights_x, 0, strip, cubic, columns, narrow)
        _turn(columns, rest, out_SQ[y : y + strip])


@compiled
def _to_channels(
    luma: np.ndarray, blue: np.ndarray, red: np.ndarray, width: int, out_CSS: np.ndarray
) -> None:
    """Planes of luma and colours, as uint32 of neighbours, to red, green and blue; lines are `width` bytes
    apart.
    """
    size = out_CSS.shape[1]
    # lines that follow each other without a gap are one long line, in half the time
    num_lines, length = (1, size * size) if size == width else (size, size)
    channels = out_CSS.reshape(out_CSS.shape[0], num_lines, length)
    for y in range(num_lines):
        here = slice(y * width, y * width + length)
        _to_planes(
            luma.view(np.uint8)[here],
            blue.view(np.uint8)[here],
            red.view(np.uint8)[here],
            channels[0, y],
            channels[1, y],
            channels[2, y],
        )


@compiled
def crop_planes(
    luma_HW: np.ndarray,
    blue_hw: np.ndarray,
    red_hw: np.ndarray,
    left: float,
    top: float,
    width: float,
    height: float,
    flip: bool,
    cubic: bool,
    out_CSS: np.ndarray,
    scratch: np.ndarray,
) -> None:
    """`crop_kernels.crop` of an image in planes of 4:2:0, with the same arguments,
    to within four levels of it.

    `scratch`: uint32, at least `plane_scratch_pixels(W, S)`.
    """
    image_height, image_width = luma_HW.shape
    size, taps = out_CSS.shape[1], 4 if cubic else 2
    wide = height > MAX_NARROW * size, width > MAX_NARROW * size
    bits = CUBIC_BITS if cubic else NARROW_BITS
    starts_x, counts_x = np.empty(size, np.int32), np.empty(size, np.int32)
    starts_y, counts_y = np.empty(size, np.int32), np.empty(size, np.int32)
    weights_x = np.zeros((size, int(taps * max(1.0, width / size)) + 4), np.int16)
    weights_y = np.zeros((size, int(taps * max(1.0, height / size)) + 4), np.int16)
    bits_x, bits_y = WIDE_BITS if wide[1] else bits, WIDE_BITS if wide[0] else bits
    find_weights(left, width, image_width, flip, cubic, bits_x, starts_x, counts_x, weights_x)
    find_weights(top, height, image_height, False, cubic, bits_y, starts_y, counts_y, weights_y)
    first, last = image_width, 0
    for index in range(size):
        first, last = min(first, starts_x[index]), max(last, starts_x[index] + counts_x[index])
    first &= ~1
    for index in range(size):
        starts_x[index] -= first
    colours_x = _weights_of_colours(starts_x, counts_x, weights_x)
    colours_y = _weights_of_colours(starts_y, counts_y, weights_y)

    quads = (size + 3) >> 2
    num_strips = -(-size // STRIP)
    strip = -(-size // (num_strips * 8)) * 8  # even ones, for each is made whole
    whole = num_strips * strip
    num = quads * whole
    planes, rest = scratch[: 3 * num].reshape(3, whole, quads), scratch[3 * num :]
    luma, blue, red = planes[0], planes[1], planes[2]
    first_colour, num_colours = first >> 1, (last - first + 1) >> 1
    down, along = (starts_y, counts_y, weights_y), (starts_x, counts_x, weights_x)
    _crop_plane(luma_HW, down, along, wide, cubic, first, last - first, luma, strip, rest)
    _crop_plane(blue_hw, colours_y, colours_x, wide, cubic, first_colour, num_colours, blue, strip, rest)
    _crop_plane(red_hw, colours_y, colours_x, wide, cubic, first_colour, num_colours, red, strip, rest)
    _to_channels(luma.reshape(num), blue.reshape(num), red.reshape(num), 4 * quads, out_CSS)
