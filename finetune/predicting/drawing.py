"""Results drawn on pictures: boxes, and a line of words under the picture."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pretrain.data.decode import decode_upright
from pretrain.data.sheet import BOX_COLOURS, drawable

INK, PAPER = (20, 20, 20), (250, 250, 250)


def pixels_of(encoded: bytes) -> np.ndarray:
    """uint8 [H, W, 3] of an image file, the right way up. Raises BadImage."""
    return np.array(decode_upright(encoded).convert("RGB"))


def draw(
    pixels_HW3: np.ndarray, record: dict[str, Any], *, boxes: Sequence[tuple[Sequence[float], str]] | None = None
) -> Image.Image:
    """A picture with what a record says of it; `boxes` (left, top, right, bottom and a text) in place of the record's."""
    image = Image.fromarray(pixels_HW3)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(11, min(image.size) // 24))
    for box, text in boxes if boxes is not None else boxes_of(record):
        colour = BOX_COLOURS[zlib.crc32(text.rpartition(" ")[0].encode()) % len(BOX_COLOURS)]
        left, top, right, bottom = (round(side) for side in box)
        pen.rectangle(
            (left, top, max(left, right), max(top, bottom)), outline=colour, width=max(2, min(image.size) // 160)
        )
        pen.text((left + 3, top + 1), drawable(text), fill=PAPER, font=font, stroke_width=2, stroke_fill=INK)
    words = words_of(record)
    if not words:
        return image
    height = round(font.size * 1.7) if isinstance(font, ImageFont.FreeTypeFont) else 20
    page = Image.new("RGB", (image.width, image.height + height), PAPER)
    page.paste(image)
    ImageDraw.Draw(page).text((4, image.height + height // 6), drawable(words), fill=INK, font=font)
    return page


def boxes_of(record: dict[str, Any]) -> list[tuple[Sequence[float], str]]:
    """The boxes of a detector's record, or the regions of a localization, with a text each."""
    if record.get("regions") is not None:
        return [(region["box"], f"{record['localized']} {region['score']:.2f}") for region in record["regions"]]
    if not record.get("boxes"):
        return []
    rows = zip(record["boxes"], record["labels"], record["scores"], strict=True)
    return [(box, f"{label} {score:.2f}") for box, label, score in rows]


def words_of(record: dict[str, Any]) -> str:
    """What a record says in words."""
    if record.get("sentence") is not None:
        return str(record["sentence"])
    return f"{record['label']} {record['score']:.0%}" if "label" in record else ""


def jpeg(image: Image.Image) -> bytes:
    """A picture as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
