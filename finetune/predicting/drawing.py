"""Results drawn on images: boxes, and a line of words under the image."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pretrain.data.images.sheet import BOX_COLOURS, drawable

INK, PAPER = (20, 20, 20), (250, 250, 250)


class Mark(NamedTuple):
    """A box to draw: left, top, right, bottom in pixels, a name that gives its colour, a text behind it."""

    box: Sequence[float]
    name: str
    note: str


def draw(pixels_HW3: np.ndarray, marks: Sequence[Mark], *, words: str = "") -> Image.Image:
    """An image with marks in it, and words under it."""
    image = Image.fromarray(pixels_HW3)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(11, min(image.size) // 24))
    for box, name, note in marks:
        colour = BOX_COLOURS[zlib.crc32(name.encode()) % len(BOX_COLOURS)]
        left, top, right, bottom = (round(side) for side in box)
        pen.rectangle(
            (left, top, max(left, right), max(top, bottom)),
            outline=colour,
            width=max(2, min(image.size) // 160),
        )
        text = drawable(f"{name} {note}")
        pen.text((left + 3, top + 1), text, fill=PAPER, font=font, stroke_width=2, stroke_fill=INK)
    if not words:
        return image
    height = round(font.size * 1.7) if isinstance(font, ImageFont.FreeTypeFont) else 20
    page = Image.new("RGB", (image.width, image.height + height), PAPER)
    page.paste(image)
    ImageDraw.Draw(page).text((4, image.height + height // 6), drawable(words), fill=INK, font=font)
    return page


def marks_of(record: dict[str, Any], *, min_score: float = 0.0) -> list[Mark]:
    """A detector's boxes, or the regions of a localization, of at least a score (to two places)."""
    if record.get("regions") is not None:
        found = [(region["box"], record["localized"], region["score"]) for region in record["regions"]]
    elif record.get("boxes"):
        found = list(zip(record["boxes"], record["labels"], record["scores"], strict=True))
    else:
        return []
    return [Mark(box, name, f"{score:.2f}") for box, name, score in found if round(score, 2) >= min_score]


def words_of(record: dict[str, Any]) -> str:
    """What a record says in words."""
    if record.get("sentence") is not None:
        return str(record["sentence"])
    return f"{record['label']} {record['score']:.0%}" if "label" in record else ""


def jpeg(image: Image.Image) -> bytes:
    """An image as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
