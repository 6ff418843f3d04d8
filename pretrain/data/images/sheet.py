"""A contact sheet: small images of a few dozen rows in a grid, with their labels and boxes."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLUMNS, NUM_CELLS = 8, 48
SIDE, GAP, LINE_HEIGHT = 160, 6, 14  # pixels
NUM_LINES = 2
FONT_PIXELS, BOX_FONT_PIXELS = 11, 10
PAGE, FRAME, INK, BAD_INK = (255, 255, 255), (225, 225, 225), (30, 30, 30), (190, 30, 30)
# told apart by most eyes (Okabe and Ito, https://jfly.uni-koeln.de/color/)
BOX_COLOURS = [
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
]


@dataclass(frozen=True)
class Cell:
    """One image of the sheet.

    Attributes:
        image: scaled to fit `SIDE`; None for an image that cannot be decoded.
        text: its label, or why it is bad.
        location: which row it is.
        boxes: (left, top, right, bottom) as fractions of the image's sides, and the class name of each.
    """

    image: Image.Image | None
    text: str
    location: str
    boxes: Sequence[tuple[tuple[float, float, float, float], str]] = field(default=())


def thumbnail(pixels_HW3: np.ndarray) -> Image.Image:
    """An image scaled down to fit a cell; small ones are enlarged by a whole number, pixel by pixel."""
    image = Image.fromarray(pixels_HW3)
    factor = SIDE // max(image.size)
    if factor > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return image


def draw_sheet(cells: Sequence[Cell], *, num_columns: int = COLUMNS) -> bytes:
    """The cells from left to right and from top to bottom as PNG; the same cells give the same bytes."""
    num_columns = max(1, min(num_columns, len(cells)))
    num_rows = max(1, -(-len(cells) // num_columns))
    height = SIDE + NUM_LINES * LINE_HEIGHT
    page = Image.new("RGB", (GAP + num_columns * (SIDE + GAP), GAP + num_rows * (height + GAP)), PAGE)
    draw = ImageDraw.Draw(page)
    font, box_font = ImageFont.load_default(FONT_PIXELS), ImageFont.load_default(BOX_FONT_PIXELS)
    for index, cell in enumerate(cells):
        left, top = GAP + index % num_columns * (SIDE + GAP), GAP + index // num_columns * (height + GAP)
        draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), fill=FRAME)
        if cell.image is not None:
            inner = left + (SIDE - cell.image.width) // 2, top + (SIDE - cell.image.height) // 2
            # boxes are drawn on an image of their own, which cuts off what reaches beyond it
            page.paste(_with_boxes(cell.image, cell.boxes, box_font), inner)
        ink = INK if cell.image is not None else BAD_INK
        draw.text((left, top + SIDE), _fitted(cell.text, font), fill=ink, font=font)
        draw.text((left, top + SIDE + LINE_HEIGHT), _fitted(cell.location, font), fill=INK, font=font)
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return buffer.getvalue()


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _with_boxes(
    image: Image.Image, boxes: Sequence[tuple[tuple[float, float, float, float], str]], font: Font
) -> Image.Image:
    drawn = image.copy()
    draw = ImageDraw.Draw(drawn)
    for fractions, name in boxes:
        # what lies far outside is brought near, for the pen counts in 32 bits
        x1, y1, x2, y2 = (
            round(min(max(fraction, -1.0), 2.0) * side) for fraction, side in zip(fractions, image.size * 2)
        )
        if x2 < x1 or y2 < y1:
            continue
        colour = BOX_COLOURS[zlib.crc32(name.encode("utf-8", "replace")) % len(BOX_COLOURS)]
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=2)
        draw.text(
            (x1 + 3, y1 + 1), drawable(name)[:40], fill=colour, font=font, stroke_width=1, stroke_fill=INK
        )
    return drawn


def _fitted(text: str, font: Font) -> str:
    """As much of a text as fits under an image."""
    text = drawable(text[: SIDE // 2])
    while text and font.getlength(text) > SIDE:
        text = text[:-1]
    return text


def drawable(text: str) -> str:
    """Text on one line, with a question mark for what the built-in font has no letters for."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line.encode("latin-1", "replace").decode("latin-1")
