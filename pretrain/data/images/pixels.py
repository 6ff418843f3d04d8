"""Encoded images to pixels as `pretrain.data.images.crop_kernels` takes them: upright, four bytes a pixel,
decoded once and no larger than needed.

A JPEG goes through libjpeg-turbo by simplejpeg, which writes such pixels itself, scales while it decodes and
needs no copy. Everything unusual about a JPEG, and all other formats, go through
`pretrain.data.images.decode`, which also finds the reason when an image is bad. So what is a bad image, and
which way is up, does not depend on who decodes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg

from pretrain.data.images.bands import decode_bands
from pretrain.data.images.decode import (
    MAX_PIXELS,
    MAX_SIDE,
    UPRIGHT_ARRAYS,
    check_size,
    decode_upright,
    image_size,
    max_pixels_now,
    only_bad_image,
)
from pretrain.data.images.image_headers import exif_orientation
from pretrain.data.images.planes import COLOURS, MAGIC, RGB, Planes

# of a thread: decoded photos of up to a megapixel, the work of a crop, and that of colours
BLOCK_BYTES = {"pixels": 4 * 2**20, "crops": 2 * 2**20, "colours": 2 * 2**20}
KEPT_BUFFER_BYTES = 64 * 2**20  # larger ones are let go after use
MIN_FAST_SIDE = 256  # pixels, see `open_image`
_MAX_MARKERS = 1000  # before the pixels of a JPEG; honest files have about ten
_MANY_SCANS = 100  # honest progressive files have about ten; see MAX_SCANNED_PIXELS
# JPEG markers: application data with EXIF, frames whose pixels come in one scan if
# that has all components, start of scan
_APP1, _SEQUENTIAL, _SCAN = 0xE1, (0xC0, 0xC1), 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class OpenedImage:
    """An image whose header is read.

    Attributes:
        width, height: upright, in pixels.
        decode: `decode(denominator)` gives uint8 [groups, height, width, 4] of 1 / denominator (1, 2, 4 or
            8) of the size, of the full size, or of less where a JPEG's would be more than `MAX_PIXELS`; the
              channels lie in groups of four, and
            what is beyond the last one means nothing. The array may be a buffer that this thread's next
            `decode` overwrites. Raises BadImage.
        planes: of an image that is stored decoded, where crops can be cut straight out of them.
    """

    width: int
    height: int
    decode: Callable[[int], np.ndarray]
    planes: Planes | None = None


def open_image(data: Any, *, channels: int = 3, fast: bool = False) -> OpenedImage:
    """Reads the header of an encoded image, or takes an array that `OpenedImage.decode` gave.

    Args:
        data: the encoded file (bytes or a buffer), or uint8 [groups, height, width, 4].
        channels: 3 for RGB, 1 for grey; any other number is that of the image's own bands.
        fast: where a JPEG of 256 pixels or more stores colours at half the resolution, each is repeated for
            the pixels it was taken from, as DALI does by default. Interpolating them, as Pillow does, takes
            an eighth of the time of decoding; for random views.
            Smaller images would lose more by it, and cost little.

    Raises:
        BadImage: when the header is damaged or its size refused; the pixels behind it may still be bad.
    """
    if isinstance(data, np.ndarray):
        return OpenedImage(data.shape[2], data.shape[1], lambda denominator: data)
    if bytes(data[: len(MAGIC)]) == MAGIC and channels in (1, 3):
        return _stored(data, channels)
    encoded = bytes(data)
    if channels not in (1, 3):
        bands = decode_bands(encoded, channels)
        return OpenedImage(bands.shape[1], bands.shape[0], lambda denominator: _grouped(bands))
    if encoded.startswith(b"\xff\xd8\xff"):
        image = _jpeg(encoded, channels, fast)
        if image is not None:
            return image
    width, height = image_size(encoded)
    return OpenedImage(width, height, lambda denominator: _by_pillow(encoded, channels))


def _jpeg(encoded: bytes, channels: int, fast: bool) -> OpenedImage | None:
    """None for what is left to Pillow: CMYK, absurd sizes, damaged headers."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    if (
        colours not in ("RGB", "YCbCr", "Gray")
        or not 0 < width * height <= max_pixels_now()
        or max(width, height) > MAX_SIDE
    ):
        return None
    orientation, may_have_scans = _headers(encoded)
    if may_have_scans and encoded.count(b"\xff\xda") > _MANY_SCANS:
        return None

    def decode(denominator: int) -> np.ndarray:
        while denominator < 8 and -(-height // denominator) * -(-width // denominator) > MAX_PIXELS:
            denominator *= 2
        rows, columns = -(-height // denominator), -(-width // denominator)
        layout, num_bytes = ("GRAY", 1) if channels == 1 else ("RGBX", 4)
        try:
            pixels = simplejpeg.decode_jpeg(
                encoded,
                colorspace=layout,
                # a scale is chosen that gives at least this many;
                # others than 1/2, 1/4 and 1/8 have no fast code
                min_height=rows if denominator > 1 else 0,
                min_width=columns if denominator > 1 else 0,
                min_factor=max(1, denominator),
                fastupsample=fast and min(width, height) >= MIN_FAST_SIDE,
                buffer=buffers.bytes(rows * columns * num_bytes),
            )
        except ValueError:
            # a warning or an error of the library: Pillow bears what is harmless,
            # and has the words for what is not
            return _by_pillow(encoded, channels)
        if channels == 1:
            pixels = np.repeat(pixels, 4, axis=2)
        return (pixels if orientation == 1 else np.ascontiguousarray(UPRIGHT_ARRAYS[orientation](pixels)))[
            None
        ]

    return OpenedImage(height, width, decode) if orientation >= 5 else OpenedImage(width, height, decode)


def _stored(encoded: bytes | memoryview, channels: int) -> OpenedImage:
    with only_bad_image():
        planes = Planes.of(encoded)
    check_size(planes.width, planes.height, None)

    def decode(denominator: int) -> np.ndarray:
        if channels == 1 and planes.kind == RGB:
            return _by_pillow(encoded, channels)
        out = buffers.bytes(4 * planes.width * planes.height).view(np.uint32)
        (planes if channels == 3 else planes.grey()).write_pixels(out)
        return out.view(np.uint8).reshape(1, planes.height, planes.width, 4)

    cropped = planes if channels == 3 and planes.kind == COLOURS else None
    return OpenedImage(planes.width, planes.height, decode, cropped)


def _headers(encoded: bytes) -> tuple[int, bool]:
    """EXIF orientation of a JPEG, and whether it may have several scans; reads up to its first scan."""
    orientation, num_components, position = 0, 0, 2
    for _ in range(_MAX_MARKERS):
        if position + 4 > len(encoded) or encoded[position] != 0xFF:
            break
        marker = encoded[position + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            position += 1
            continue
        start = position + 4
        stop = position + 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
        if marker == _APP1 and encoded.startswith(b"Exif\0\0", start):
            orientation = orientation or exif_orientation(encoded[start:stop])
        elif marker in _FRAMES and stop <= len(encoded) and start + 6 <= stop:
            num_components = encoded[start + 5] if marker in _SEQUENTIAL else 0
        elif marker == _SCAN:
            return orientation or 1, start >= len(encoded) or encoded[start] != num_components
        position = stop
    return orientation or 1, True


def _by_pillow(encoded: bytes | memoryview, channels: int) -> np.ndarray:
    image = decode_upright(encoded)
    if channels == 1:
        image = image.convert("L").convert("RGB")
    # writable as all others are: else the loops would be compiled twice
    return np.array(image.convert("RGBX"))[None]


def _grouped(bands_HWC: np.ndarray) -> np.ndarray:
    height, width, channels = bands_HWC.shape
    groups = np.zeros((-(-channels // 4), height, width, 4), np.uint8)
    for channel in range(channels):
        groups[channel // 4, :, :, channel % 4] = bands_HWC[:, :, channel]
    return groups


def as_channels(groups_GHW4: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [groups, height, width, 4] -> uint8 [channels, height, width], a copy."""
    groups, height, width, _ = groups_GHW4.shape
    return groups_GHW4.transpose(0, 3, 1, 2).reshape(groups * 4, height, width)[:channels].copy()


class Buffers(threading.local):
    """Memory of a thread that is used again for the next image:
    fresh pages would cost about as much as a crop.

    What photos and views of usual sizes need lies in one block, because numpy asks for huge pages from 4 MiB
    on: on small ones, wherever they happen to lie, decoding and cropping took up to a third longer.
    """

    def __init__(self) -> None:
        block, stop = np.empty(sum(BLOCK_BYTES.values()), np.uint8), 0
        self._kept: dict[str, np.ndarray] = {}
        for kind, num_bytes in BLOCK_BYTES.items():
            start, stop = stop, stop + num_bytes
            self._kept[kind] = block[start:stop]

    def bytes(self, num: int) -> np.ndarray:
        """uint8 [num], overwritten by the next call."""
        return self._get("pixels", num, np.uint8)

    def integers(self, num: int) -> np.ndarray:
        """uint32 [num], overwritten by the next call."""
        return self._get("crops", num, np.uint32)

    def floats(self, num: int) -> np.ndarray:
        """float32 [num], overwritten by the next call."""
        return self._get("colours", num, np.float32)

    def _get(self, kind: str, num: int, dtype: type) -> np.ndarray:
        num_bytes = num * np.dtype(dtype).itemsize
        memory = self._kept[kind]
        if len(memory) < num_bytes:
            memory = np.empty(num_bytes, np.uint8)
            if num_bytes <= KEPT_BUFFER_BYTES:
                self._kept[kind] = memory
        return memory[:num_bytes].view(dtype)


buffers = Buffers()
