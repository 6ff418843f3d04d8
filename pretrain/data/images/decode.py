"""Encoded images to RGB pixels, upright: whatever the bytes are, the answer is an array or `BadImage`.

Formats: JPEG, PNG, WebP, BMP, TIFF, AVIF, JPEG 2000, PNM (.ppm, .pgm, .pbm) and the first frame of a GIF,
HEIC where the package pillow-heif is installed, and images that are stored decoded
(`pretrain.data.images.planes`), told apart by their first bytes. Each is opened by its own Pillow plugin and
not by `Image.open`, which tries every plugin there is, warns by Pillow's global size limit, and lets the
WebP decoder allocate its canvas before anybody has seen the size. Safe to call from many threads; Pillow's
decoders release the GIL, and nothing of Pillow's global state is read or changed.
"""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    WebPImagePlugin,
)
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from pretrain.data.images.image_headers import (
    ORIENTATION_TAG,
    exif_orientation,
    image_format,
    late_png_exif,
    without_large_texts,
)
from pretrain.data.images.planes import PlanesImageFile

MAX_PIXELS = 100_000_000
# the limit of JPEG and GIF; a run-length BMP 10^8 pixels wide could ask for 255 such lines in 4 bytes
MAX_SIDE = 65_535
MAX_SCANNED_PIXELS = 10_000_000_000  # progressive JPEG: pixels x scans; honest files have about ten scans

BITS_TAG, PHOTOMETRIC_TAG = 258, 262
TILE_WIDTH_TAG, TILE_LENGTH_TAG = 322, 323

# EXIF orientation -> what brings the pixels upright; 1 is upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# the same for arrays [height, width, channels]
UPRIGHT_ARRAYS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels.transpose(1, 0, 2)[:, ::-1],
    7: lambda pixels: pixels.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
}


OPENERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "JPEG 2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "PNM": PpmImagePlugin.PpmImageFile,
    "decoded": PlanesImageFile,
}
# formats that are known by their first bytes and cannot be decoded here
NOT_DECODED = {
    "HEIC": "HEIC; pip install pillow-heif to read it",
    "JPEG XL": "JPEG XL, which is not read; save it as PNG",
}
SIGNIFICANT_BITS = (8, 12)  # of grey values in 16-bit files whose header says nothing, by their range

_max_pixels = MAX_PIXELS


def max_pixels_now() -> int:
    """Pixels that an image may have in this process."""
    return _max_pixels


def set_max_pixels(num: int | None) -> None:
    """Sets the pixels that an image may have in this process; None for `MAX_PIXELS`."""
    global _max_pixels
    _max_pixels = MAX_PIXELS if num is None else num


class BadImage(Exception):
    """An image that cannot be used; the text is a short reason such as `truncated` or `not an image`."""


def decode_image(
    data: bytes | memoryview, *, min_side: int | None = None, max_pixels: int | None = None
) -> np.ndarray:
    """Decodes an image to uint8 [height, width, 3], RGB, turned upright by its EXIF orientation.

    Transparency is laid on white, as a page would show it. 16-bit grey keeps its high byte, as Pillow does
    for 16-bit colour, or, where no value needs more than 12 (8) bits, the high byte of these: cameras put
    such values into 16-bit files as they are.
    CMYK is converted without a colour profile. Floats and 32-bit integers have no agreed range and are
    refused.

    Args:
        data: the encoded file.
        min_side: the short side may come out smaller than it is, but not below this many pixels. Only JPEG
            makes use of it: it is decoded at 1/2, 1/4 or 1/8 of its size, which is several times faster.
        max_pixels: more are refused from the header, before anything is decoded; None: `max_pixels_now`.

    Raises:
        BadImage: for everything that cannot be decoded, and nothing else.
    """
    return np.asarray(decode_upright(data, min_side=min_side, max_pixels=max_pixels))


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded image, and how it lay in its file.

    Attributes:
        image: the pixels, of mode RGB, upright.
        stored_size: (width, height) before EXIF turned it.
        orientation: EXIF's, 1 to 8.
        significant_bits: of grey values in a 16-bit file that do not use them all; else 0.
    """

    image: Image.Image
    stored_size: tuple[int, int]
    orientation: int
    significant_bits: int = 0


def decode_whole(data: bytes | memoryview, *, max_pixels: int | None = None) -> Decoded:
    """`decode_image`, and how the image is stored in the file. Raises BadImage."""
    with only_bad_image():
        image, orientation = open_image(bytes(data), max_pixels)
        size, turned = _as_stored(image, orientation)
        image.load()
        rgb, bits = to_rgb(image)
        return Decoded(upright(rgb, orientation), size, turned, bits)


def image_frame(data: bytes | memoryview, *, max_pixels: int | None = None) -> tuple[tuple[int, int], int]:
    """((width, height) as stored, EXIF orientation), from the header alone. Raises BadImage."""
    with only_bad_image():
        return _as_stored(*open_image(bytes(data), max_pixels))


def _as_stored(image: ImageFile.ImageFile, orientation: int) -> tuple[tuple[int, int], int]:
    if isinstance(image, TiffImageFile):  # Pillow has turned its size already
        turned = int(image.tag_v2.get(ORIENTATION_TAG, 1))
        turned = turned if 1 <= turned <= 8 else 1
        width, height = image.size
        return ((height, width) if turned >= 5 else (width, height)), turned
    return image.size, orientation


def significant_bits(data: bytes | memoryview) -> int:
    """Bits that the grey values of a 16-bit image use where these are fewer, else 0. Raises BadImage."""
    with only_bad_image():
        image, _ = open_image(bytes(data), None)
        if not image.mode.startswith("I;16"):
            return 0
        image.load()
        return to_rgb(image)[1]


def decode_upright(
    data: bytes | memoryview, *, min_side: int | None = None, max_pixels: int | None = None
) -> Image.Image:
    """`decode_image` as a Pillow image of mode RGB."""
    with only_bad_image():
        image, orientation = open_image(bytes(data), max_pixels)
        if min_side is not None and isinstance(image, JpegImageFile):
            image.draft(None, (max(1, min_side), max(1, min_side)))
        image.load()
        return upright(to_rgb(image)[0], orientation)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """An image turned by its EXIF orientation."""
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def image_size(data: bytes | memoryview, *, max_pixels: int | None = None) -> tuple[int, int]:
    """The (width, height) that `decode_image` would give, from the header alone.

    Raises:
        BadImage: when the header is damaged or the size is refused; the pixels behind it may still be bad.
    """
    with only_bad_image():
        image, orientation = open_image(bytes(data), max_pixels)
        width, height = image.size
        return (height, width) if orientation >= 5 else (width, height)


@contextmanager
def only_bad_image() -> Iterator[None]:
    """Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error and more on damaged files:
    all become BadImage.
    """
    try:
        yield
    except BadImage:
        raise
    except MemoryError as error:
        raise BadImage("not enough memory") from error
    except Image.DecompressionBombError as error:
        raise BadImage("too large") from error
    except Exception as error:
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        raise BadImage("truncated" if cut else "damaged") from error


def open_image(data: bytes, max_pixels: int | None) -> tuple[ImageFile.ImageFile, int]:
    """The image with its header read and size accepted, and the EXIF orientation still to be applied."""
    if not data:
        raise BadImage("empty")
    form = image_format(data)
    if form is None:
        raise BadImage(
            "base64 text of an image; store its bytes" if _is_base64_image(data) else "not an image"
        )
    if form == "WebP":
        check_size(*_webp_canvas(data), max_pixels)  # its decoder allocates the canvas when it is made
    elif form == "GIF" and len(data) >= 10:
        width, height = struct.unpack_from("<HH", data, 6)
        check_size(width, height, max_pixels)
    image = _opened(form, data)
    check_size(*image.size, max_pixels)
    if isinstance(image, TiffImageFile):
        width, height = (int(image.tag_v2.get(tag, 1)) for tag in (TILE_WIDTH_TAG, TILE_LENGTH_TAG))
        check_size(width, height, max_pixels)
        return image, 1  # Pillow turns a TIFF while loading, and its size is that of the turned image
    if image.info.get("progressive"):
        num_scans = data.count(b"\xff\xda")  # cannot occur in coded pixels, so only metadata adds a few
        if num_scans > 100 and num_scans * image.width * image.height > MAX_SCANNED_PIXELS:
            raise BadImage("too many scans")
    exif = image.info.get("exif")
    if exif is None and form == "PNG":
        exif = late_png_exif(data)
    return image, exif_orientation(exif or b"")


def _is_base64_image(data: bytes) -> bool:
    """Whether bytes are text that base64 made of an image, or a data URL with such."""
    text = data[:128].partition(b";base64,")[2] or data[:64]
    try:
        return image_format(base64.b64decode(text[: len(text) // 4 * 4], validate=True)) is not None
    except ValueError:
        return False


def _opened(form: str, data: bytes) -> ImageFile.ImageFile:
    if form == "HEIC":
        return _heic(data)
    if form in NOT_DECODED:
        raise BadImage(NOT_DECODED[form])
    if form != "PNG":
        return OPENERS[form](io.BytesIO(data))
    try:
        return OPENERS[form](io.BytesIO(data))
    except ValueError:  # text or a colour profile of more than 1 MiB, of which the pixels know nothing
        return OPENERS[form](io.BytesIO(without_large_texts(data)))


def _heic(data: bytes) -> ImageFile.ImageFile:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise BadImage(NOT_DECODED["HEIC"]) from error
    image: ImageFile.ImageFile = HeifImageFile(io.BytesIO(data))
    return image


def check_size(width: int, height: int, max_pixels: int | None) -> None:
    """Raises BadImage for a size that is none or too large; None: `max_pixels_now`."""
    if width < 1 or height < 1:
        raise BadImage("damaged")
    if width * height > (_max_pixels if max_pixels is None else max_pixels) or max(width, height) > MAX_SIDE:
        raise BadImage(f"too large: {width}x{height} pixels")


def to_rgb(image: Image.Image) -> tuple[Image.Image, int]:
    """The image as RGB, and the bits that values of 16-bit grey use where these are fewer, else 0."""
    if image.mode.startswith("I;16"):
        grey, bits = _sixteen_bits_to_eight(image)
        return grey.convert("RGB"), bits if bits < 16 else 0
    # whose values Pillow spreads over 16 bits
    if image.mode == "I" and isinstance(image, PpmImagePlugin.PpmImageFile):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB"), 0
    if image.mode in ("I", "F"):
        kind = "floats" if image.mode == "F" else "signed or 32-bit integers"
        raise BadImage(f"unsupported pixels: {kind}")
    if image.has_transparency_data:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        page = Image.new("RGB", image.size, (255, 255, 255))
        page.paste(layer, mask=layer.getchannel("A"))
        return page, 0
    return image if image.mode == "RGB" else image.convert("RGB"), 0


def _sixteen_bits_to_eight(image: Image.Image) -> tuple[Image.Image, int]:
    """Grey of 8 bits, and how many bits the values use: as the header says, else by their range."""
    bits, white_is_zero = 16, False
    # 12 bits come unscaled, and only up to 8 bits does Pillow mind the photometric tag
    if isinstance(image, TiffImageFile):
        bits = int(image.tag_v2.get(BITS_TAG, (16,))[0])
        white_is_zero = image.tag_v2.get(PHOTOMETRIC_TAG) == 0
    values = np.asarray(image)
    told = bits < 16
    if bits == 16:
        largest = int(values.max(initial=0))
        bits = next((few for few in SIGNIFICANT_BITS if 0 < largest < 2**few), 16)
    grey = (values >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(255 - grey if white_is_zero else grey), 16 if told else bits


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Width and height in a WebP file (https://developers.google.com/speed/webp/docs/riff_container)."""
    # 7, less than 8: a pad byte may be missing
    if len(data) < 30 or int.from_bytes(data[4:8], "little") + 7 > len(data):
        raise BadImage("truncated")
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise BadImage("damaged")
