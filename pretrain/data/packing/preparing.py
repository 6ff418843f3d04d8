"""Importing one image: read it, check that it decodes, bring its boxes upright, scale it down when asked."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable, Container
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from cluster.errors import UserError
from pretrain.data.images.bands import num_bands
from pretrain.data.images.decode import BadImage, Decoded, decode_upright, decode_whole
from pretrain.data.images.frames import has_more_frames
from pretrain.data.images.geometry import Frame, WrongFrame, beyond, upright_boxes
from pretrain.data.images.image_headers import image_format
from pretrain.data.images.pixels import open_image
from pretrain.data.images.planes import PlanesImageFile, as_planes
from pretrain.data.packing.sources import Objects, Record

MAX_FILE_BYTES = 512 * 2**20  # no photo is that large, and workers hold whole files

TURNED = "image whose boxes were rotated with it, as EXIF says"
RESIZED = "image whose boxes were scaled to its size, which is not the recorded one"
OUTSIDE = "box that reaches beyond its image, kept"
ASSUMED = (
    "image that EXIF rotates, whose boxes are taken as those of the upright image; no size is "
    "recorded with them"
)
FRAMES = "image of several frames or pages, of which the first is read"
FEW_BITS = "16-bit image whose values use fewer bits, scaled to those"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A record with what is to be stored, or with `data` None and the reason in `notes`.

    `path`, `data` and `objects` are those of the image as it is stored; `digest` is that of the bytes as
    they were read, empty where none was asked for. `unread`: its bytes could not be read, so it is unknown
    whether it is good. `facts`: how often something worth reporting was seen.
    """

    record: Record
    data: bytes | None
    path: str = ""
    objects: Objects | None = None
    bytes_before: int = 0
    digest: bytes = b""
    notes: tuple[str, ...] = ()
    unread: bool = False
    facts: dict[str, int] = field(default_factory=dict)


def prepare(
    record: Record,
    *,
    short_side: int,
    jpeg_quality: int,
    decoded_form: bool = False,
    on_stored: bool | None = None,
    same_stem: Container[str] = (),
    digest_of: Callable[[bytes], bytes] | None = None,
) -> Prepared:
    """Reads and checks one image.

    Args:
        record: says what is known of it.
        short_side, jpeg_quality, decoded_form: see `pretrain.data.packing.importing.ImportOptions`.
        on_stored: as in `pretrain.data.images.geometry.upright_boxes`.
        same_stem: paths that would be equal with another ending; these get a second one.
        digest_of: where equal images matter.
    """
    if record.problem is not None:
        return Prepared(record, None, notes=(record.problem,))
    if record.size_bytes > MAX_FILE_BYTES:
        return Prepared(record, None, notes=(f"file too large: {record.size_bytes} bytes",))
    try:
        data = record.read()
    except (UserError, ValueError) as error:  # ValueError: a URL that is none
        return Prepared(
            record, None, notes=(f"cannot be read: {str(error).rsplit(': ', 1)[-1]}",), unread=True
        )
    if len(data) > MAX_FILE_BYTES:
        return Prepared(record, None, notes=(f"file too large: {len(data)} bytes",))
    facts: dict[str, int] = {}
    try:
        decoded = decode_whole(data)
        objects = _objects(record, decoded, on_stored, facts)
    except (BadImage, WrongFrame) as error:
        return Prepared(record, None, notes=(str(error),))
    if decoded.significant_bits:
        facts[FEW_BITS] = 1
    if has_more_frames(data):
        facts[FRAMES] = 1
    width, height = decoded.image.size
    stored, path = data, record.path
    if decoded_form:
        stored = stored_decoded(data, short_side=short_side, image=decoded.image)
    if short_side and min(width, height) > short_side:
        scale = short_side / min(width, height)
        if not decoded_form:
            buffer = io.BytesIO()
            # the pixels are upright already, so no orientation is stored
            scaled_to(decoded.image, short_side).save(buffer, "JPEG", quality=jpeg_quality)
            stored, path = buffer.getvalue(), as_jpeg(record.path, same_stem)
        if objects is not None:
            boxes = tuple((x * scale, y * scale, w * scale, h * scale) for x, y, w, h in objects.bbox)
            objects = Objects(boxes, objects.category)
    return Prepared(
        record,
        stored,
        path,
        objects,
        bytes_before=len(data),
        digest=digest_of(data) if digest_of else b"",
        facts=facts,
    )


def scaled_to(image: Image.Image, short_side: int) -> Image.Image:
    """An image scaled down to `short_side` pixels on its short side; a smaller one as it is."""
    width, height = image.size
    if not short_side or min(width, height) <= short_side:
        return image
    scale = short_side / min(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def stored_decoded(data: bytes, *, short_side: int = 0, image: Image.Image | None = None) -> bytes:
    """An encoded image as `pretrain.data.images.planes` stores it,
    scaled down to `short_side` where that is not 0.

    The planes of a JPEG that keeps its size are made of what random views see of it. Unless it is scaled, an
    image stays as it is that is stored so already, or has transparency or bands of its own, which planes
    cannot hold. `image` is what was decoded of it before. Raises BadImage.
    """
    if short_side:
        whole = decode_upright(data) if image is None else image
        if (scaled := scaled_to(whole, short_side)) is not whole:
            return as_planes(np.asarray(scaled))
    opened = open_image(data, fast=True)
    if image_format(data) == PlanesImageFile.format or num_bands(data) not in (1, 3):
        return data
    return as_planes(opened.decode(1)[0])


def as_jpeg(path: str, same_stem: Container[str]) -> str:
    """The path of an image that is stored as JPEG; a.png keeps its ending beside a.jpg."""
    return f"{path}.jpg" if path in same_stem else posixpath.splitext(path)[0] + ".jpg"


def _objects(
    record: Record, decoded: Decoded, on_stored: bool | None, facts: dict[str, int]
) -> Objects | None:
    """The objects in pixels of the upright image. Raises WrongFrame."""
    if record.objects is None or not record.objects.bbox:
        return record.objects
    frame = Frame(decoded.stored_size, decoded.orientation)
    given = record.objects.bbox
    boxes = upright_boxes(
        given, frame, drawn_on=record.frame, relative=record.relative_boxes, on_stored=on_stored
    )
    if record.frame is not None and not record.relative_boxes and boxes != list(given):
        facts[TURNED if record.frame == decoded.stored_size and decoded.orientation != 1 else RESIZED] = 1
    if record.frame is None and decoded.orientation != 1:
        facts[ASSUMED if record.relative_boxes or not on_stored else TURNED] = 1
    xywh_N4 = np.array(boxes)
    xyxy_N4 = np.concatenate([xywh_N4[:, :2], xywh_N4[:, :2] + xywh_N4[:, 2:]], axis=1)
    outside = int(beyond(xyxy_N4, frame.upright).sum())
    if outside and record.frame is None and not record.relative_boxes and decoded.orientation >= 5:
        raw_N4 = np.array([(x, y, x + w, y + h) for x, y, w, h in given])
        if not beyond(raw_N4, decoded.stored_size).any():
            raise WrongFrame(
                f"EXIF turns it (orientation {decoded.orientation}), and its boxes fit it only as stored; "
                "record width and height with it, or rotate them"
            )
    if outside:
        facts[OUTSIDE] = outside
    return Objects(tuple(boxes), record.objects.category)
