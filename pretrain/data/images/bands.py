"""Images with bands of their own (satellite, microscope), from NumPy, PNG, TIFF or WebP files."""

from __future__ import annotations

import io

import numpy as np

from pretrain.data.images.decode import BadImage, check_size, only_bad_image, open_image, upright

NUMPY_MAGIC = b"\x93NUMPY"


def decode_bands(data: bytes | memoryview, channels: int, *, max_pixels: int | None = None) -> np.ndarray:
    """Decodes an image with bands of its own to uint8 [height, width, channels], as stored.

    Either a NumPy file (.npy) that holds [height, width, channels], uint8 or uint16 (of which the high byte
    is kept), or a PNG, TIFF or WebP of as many bands, whose transparency then is a band like the others.

    Raises:
        BadImage: for everything that cannot be decoded or has another number of bands, and nothing else.
    """
    encoded = bytes(data)
    with only_bad_image():
        if encoded.startswith(NUMPY_MAGIC):
            return _numpy_bands(encoded, channels, max_pixels)
        image, orientation = open_image(encoded, max_pixels)
        if len(image.getbands()) != channels or image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
            raise BadImage(f"{image.mode} image, not {channels} bands")
        image.load()
        turned = upright(image, orientation)
        return np.asarray(turned).reshape(turned.height, turned.width, channels)


def num_bands(data: bytes | memoryview) -> int:
    """Channels of an image as stored, by its header; a palette counts as one. Raises BadImage."""
    encoded = bytes(data)
    with only_bad_image():
        if encoded.startswith(NUMPY_MAGIC):
            shape, _, _ = _numpy_header(io.BytesIO(encoded))
            return int(shape[2]) if len(shape) == 3 else 1
        return len(open_image(encoded, None)[0].getbands())


def _numpy_header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    formats = np.lib.format
    if formats.read_magic(stream) == (1, 0):
        return formats.read_array_header_1_0(stream)
    return formats.read_array_header_2_0(stream)


def _numpy_bands(encoded: bytes, channels: int, max_pixels: int | None) -> np.ndarray:
    stream = io.BytesIO(encoded)
    shape, by_columns, dtype = _numpy_header(stream)
    if len(shape) != 3 or shape[2] != channels:
        raise BadImage(f"array of shape {shape}, not [height, width, {channels}]")
    if dtype not in (np.uint8, np.uint16):
        raise BadImage(f"array of {dtype}, not uint8 or uint16")
    check_size(shape[1], shape[0], max_pixels)
    if len(encoded) - stream.tell() < dtype.itemsize * shape[0] * shape[1] * channels:
        raise BadImage("truncated")
    values = np.frombuffer(encoded, dtype, shape[0] * shape[1] * channels, stream.tell())
    pixels = values.reshape(shape, order="F" if by_columns else "C")
    return pixels if dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
