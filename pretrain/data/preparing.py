"""What importing does with one image: read it, check that it decodes, scale it down when asked."""

from __future__ import annotations

import hashlib
import io
import posixpath
from dataclasses import dataclass

from PIL import Image

from cluster.errors import UserError
from pretrain.data.decode import BadImage, decode_image
from pretrain.data.sources import Objects, Record

MAX_FILE_BYTES = 512 * 2**20  # no photo is that large, and workers hold whole files


@dataclass(frozen=True, slots=True)
class Prepared:
    """A record with what is to be stored, or with `data` None and the reason in `notes`.

    `path`, `data` and `objects` are those of the image as it is stored; `digest` is that of the bytes as they were read.
    `unread`: its bytes did not come, so nobody knows whether it is good.
    """

    record: Record
    data: bytes | None
    path: str = ""
    objects: Objects | None = None
    bytes_before: int = 0
    digest: bytes = b""
    notes: tuple[str, ...] = ()
    unread: bool = False


def prepare(record: Record, *, short_side: int, jpeg_quality: int) -> Prepared:
    """Reads and checks one image; see `pretrain.data.importing.ImportOptions` for the arguments."""
    if record.size_bytes > MAX_FILE_BYTES:
        return Prepared(record, None, notes=(f"file too large: {record.size_bytes} bytes",))
    try:
        data = record.read()
    except (UserError, ValueError) as error:  # ValueError: a URL that is none
        return Prepared(record, None, notes=(f"cannot be read: {str(error).rsplit(': ', 1)[-1]}",), unread=True)
    if len(data) > MAX_FILE_BYTES:
        return Prepared(record, None, notes=(f"file too large: {len(data)} bytes",))
    try:
        pixels = decode_image(data)
    except BadImage as error:
        return Prepared(record, None, notes=(str(error),))
    height, width = pixels.shape[:2]
    stored, path, scale = data, record.path, 1.0
    if short_side and min(width, height) > short_side:
        scale = short_side / min(width, height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        buffer = io.BytesIO()
        # the pixels are upright already, so no orientation is stored
        Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0).save(
            buffer, "JPEG", quality=jpeg_quality
        )
        stored, path = buffer.getvalue(), posixpath.splitext(record.path)[0] + ".jpg"
    return Prepared(
        record,
        stored,
        path,
        _scaled(record, width, height, scale),
        bytes_before=len(data),
        digest=hashlib.blake2b(data, digest_size=16).digest(),
    )


def _scaled(record: Record, width: int, height: int, scale: float) -> Objects | None:
    """The objects in pixels of the stored image."""
    if record.objects is None:
        return None
    across, down = (width * scale, height * scale) if record.relative_boxes else (scale, scale)
    boxes = tuple((x * across, y * down, w * across, h * down) for x, y, w, h in record.objects.bbox)
    return Objects(boxes, record.objects.category)
