"""Pictures as a user has them: files, URLs, bytes, arrays and PIL images."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cluster import storage
from pretrain.data.images.decode import decode_upright

Picture = str | os.PathLike[str] | bytes | np.ndarray | Image.Image


def listed(images: Picture | Sequence[Picture]) -> list[Picture]:
    """One picture or several, as a list."""
    return list(images) if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]


def encoded(picture: Picture, channels: int) -> bytes:
    """The bytes of an image file: what is read, or what would be read of an array [H, W, C] or a PIL image."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        return storage.read_bytes(str(Path(picture)) if isinstance(picture, os.PathLike) else picture)
    buffer = io.BytesIO()
    if channels not in (1, 3) and not isinstance(picture, Image.Image):
        np.save(buffer, np.asarray(picture), allow_pickle=False)
        return buffer.getvalue()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
    # lossless, and what a file with these pixels would go through
    image.save(buffer, "PNG", compress_level=0, exif=image.getexif())
    return buffer.getvalue()


def pixels_of(encoded: bytes) -> np.ndarray:
    """uint8 [H, W, 3] of an image file, the right way up. Raises BadImage."""
    return np.array(decode_upright(encoded).convert("RGB"))


def name_of(picture: Picture, number: int) -> str:
    """What an error calls a picture."""
    return str(picture) if isinstance(picture, str | os.PathLike) else f"image {number}"
