"""Images that are stored decoded: a short header and planes,
for data that are seen many times and do not fit into memory.

    offset  bytes
    0       8       MAGIC
    8       1       VERSION
    9       1       kind: 0 grey, 1 luma and colours at half the resolution (4:2:0), 2 red, green and blue
    10      2       0
    12      4, 4    width and height, little endian
    20              planes of uint8, from top to bottom without padding: [height, width], but those of the
                    two colours (blue's, then red's) [ceil(height / 2), ceil(width / 2)]

Images lie upright. Grey ones, and those of less than `MIN_COLOURS_SIDE` pixels on their short side, come
back exactly, from 1 and 3 bytes a pixel. Of larger ones each pixel has its own luma, and the mean colour of
a block of two by two, as in most JPEGs: 1.5 bytes a pixel. What has smooth colours comes back to within two
levels of 255; at an edge between two colours luma does, and the colours mix. A JPEG of 4:2:0 comes back as
libjpeg gives it without interpolation of colours (as random views see it): to within two levels where no
channel of a block is at 0 or 255, beyond which the JPEG's own numbers may have been.

Damage within the planes is not noticed, as of a BMP's.
Nothing is compressed: reading costs what the disk costs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFile

MAGIC, VERSION = b"\x8bplanes\n", 1
GREY, COLOURS, RGB = 0, 1, 2
HEADER = struct.Struct("<8sBBHII")
# pixels, as `pixels.MIN_FAST_SIDE`: smaller images would lose more, and take little room
MIN_COLOURS_SIDE = 256


@dataclass(frozen=True)
class Planes:
    """A stored image.

    Attributes:
        kind: GREY, COLOURS or RGB.
        width, height: in pixels.
        values: uint8, all planes one after the other.
    """

    kind: int
    width: int
    height: int
    values: np.ndarray

    @classmethod
    def of(cls, data: bytes | memoryview) -> Planes:
        """The image in `data`. Raises ValueError, with `truncated` in its text where bytes are missing."""
        if len(data) < HEADER.size:
            raise ValueError("truncated")
        magic, version, kind, zero, width, height = HEADER.unpack_from(data)
        if (
            (magic, version, zero) != (MAGIC, VERSION, 0)
            or kind not in (GREY, COLOURS, RGB)
            or not width
            or not height
        ):
            raise ValueError("damaged")
        values = np.frombuffer(data, np.uint8, offset=HEADER.size)
        needed = width * height + 2 * _colours(kind, width, height)
        if len(values) != needed:
            raise ValueError("truncated" if len(values) < needed else "damaged")
        return cls(kind, width, height, values)

    def split(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The planes, uint8 [H, W] and twice [h, w]; those of grey are empty but for the first."""
        num, num_colours = self.width * self.height, _colours(self.kind, self.width, self.height)
        shape = (-1, (self.width + 1) // 2 if self.kind == COLOURS else self.width)
        return (
            self.values[:num].reshape(self.height, self.width),
            self.values[num : num + num_colours].reshape(shape),
            self.values[num + num_colours :].reshape(shape),
        )

    def grey(self) -> Planes:
        """The first plane alone: of luma and colours the luma."""
        return Planes(GREY, self.width, self.height, self.values[: self.width * self.height])

    def write_pixels(self, out: np.ndarray) -> None:
        """All pixels into uint32 [height * width]: red, green, blue and 0, byte by byte."""
        from pretrain.data.images import plane_kernels

        first, second, third = self.split()
        if self.kind == COLOURS:
            plane_kernels.join_colours(first, second, third, out.reshape(self.height, self.width))
        else:
            colours = (first, first, first) if self.kind == GREY else (first, second, third)
            plane_kernels.join_planes(*(plane.reshape(-1) for plane in colours), out)

    def pixels(self) -> np.ndarray:
        """uint8 [height, width, 4], the fourth meaningless."""
        out = np.empty(self.width * self.height, np.uint32)
        self.write_pixels(out)
        return out.view(np.uint8).reshape(self.height, self.width, 4)


def _colours(kind: int, width: int, height: int) -> int:
    """Bytes of the second plane, and of the third."""
    return {GREY: 0, COLOURS: ((width + 1) // 2) * ((height + 1) // 2), RGB: width * height}[kind]


def as_planes(pixels_HWC: np.ndarray) -> bytes:
    """An image, uint8 [height, width, 3 or more] of red, green and blue, as it is stored."""
    from pretrain.data.images import plane_kernels

    height, width = pixels_HWC.shape[:2]
    red, green, blue = (pixels_HWC[:, :, channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(red, blue):
        kind, planes = GREY, [red]
    elif min(width, height) < MIN_COLOURS_SIDE:
        kind, planes = RGB, [red, green, blue]
    else:
        kind, halves = COLOURS, ((height + 1) // 2, (width + 1) // 2)
        planes = [np.empty(shape, np.uint8) for shape in ((height, width), halves, halves)]
        plane_kernels.split_colours(pixels_HWC, *planes)
    return HEADER.pack(MAGIC, VERSION, kind, 0, width, height) + b"".join(
        plane.tobytes() for plane in planes
    )


class PlanesImageFile(ImageFile.ImageFile):
    """A stored image for Pillow, of mode RGB or L."""

    format = "decoded"

    def _open(self) -> None:
        assert self.fp is not None
        self._planes = Planes.of(self.fp.read())
        self._size = (self._planes.width, self._planes.height)
        self._mode = "L" if self._planes.kind == GREY else "RGB"

    def load(self) -> Any:
        """Converts the planes on its first call."""
        if self._im is None:
            planes = self._planes
            pixels = planes.split()[0] if planes.kind == GREY else planes.pixels()[:, :, :3]
            self.im = Image.fromarray(np.ascontiguousarray(pixels)).im
        return Image.Image.load(self)
