"""Images as a user has them: files, URLs, bytes, arrays and PIL images."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cluster import storage
from pretrain.data.images.decode import decode_upright

ImageInput = str | os.PathLike[str] | bytes | np.ndarray | Image.Image


def listed(images: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    """One image or several, as a list."""
    return list(images) if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]


def encoded(image: ImageInput, channels: int) -> bytes:
    """The bytes of an image file: what is read, or what would be read of an array [H, W,
    C] or a PIL image.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return storage.read_bytes(str(Path(image)) if isinstance(image, os.PathLike) else image)
    buffer = io.BytesIO()
    if channels not in (1, 3) and not isinstance(image, Image.Image):
        np.save(buffer, np.asarray(image), allow_pickle=False)
        return buffer.getvalue()
    pillow = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    # lossless, and what a file with these pixels would go through
    pillow.save(buffer, "PNG", compress_level=0, exif=pillow.getexif())
    return buffer.getvalue()


def pixels_of(encoded: bytes) -> np.ndarray:
    """uint8 [H, W, 3] of an image file, the right way up. Raises BadImage."""
    return np.array(decode_upright(encoded).convert("RGB"))


def name_of(image: ImageInput, number: int) -> str:
    """What an error calls an image."""
    return str(image) if isinstance(image, str | os.PathLike) else f"image {number}"
