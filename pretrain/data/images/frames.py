"""Frames of images that hold several: animations, scans, microscopes."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np

from pretrain.data.images.decode import OPENERS, BadImage, only_bad_image, open_image, to_rgb
from pretrain.data.images.image_headers import image_format


def has_more_frames(data: bytes | memoryview) -> bool:
    """Whether an image that can be decoded has frames or pages behind the first
    (animations, scans, microscopes).
    """
    encoded = bytes(data)
    form = image_format(encoded)
    if form not in ("GIF", "TIFF", "WebP", "AVIF"):
        return False
    try:
        return bool(getattr(OPENERS[form](io.BytesIO(encoded)), "is_animated", False))
    except Exception:  # the first frame is good, and nothing more can be told
        return False


def num_frames(data: bytes | memoryview) -> int:
    """Frames of an animated image; 1 for all others, and for what cannot be opened."""
    try:
        with only_bad_image():
            return int(getattr(open_image(bytes(data), None)[0], "n_frames", 1))
    except BadImage:
        return 1


def animation(data: bytes | memoryview) -> Iterator[tuple[float, np.ndarray]]:
    """Seconds since the start, and uint8 [height, width, 3], of each frame of an animated image. Raises
    BadImage; a damaged end is left out."""
    with only_bad_image():
        image, _ = open_image(bytes(data), None)
    seconds, index = 0.0, 0
    while True:
        try:
            with only_bad_image():
                image.seek(index)
                image.load()
                pixels_HW3 = np.array(to_rgb(image)[0])
        except BadImage:  # Pillow says EOFError behind the last frame
            if not index:
                raise
            return
        yield seconds, pixels_HW3
        seconds, index = seconds + float(image.info.get("duration") or 0) / 1000, index + 1
