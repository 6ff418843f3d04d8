"""Small images with discs and bars whose boxes are known, as detection data, and a small encoder."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from tests.pretrain.shards import write_shards

CLASSES = ("bar", "disc")
SMALL = {"stem_stride": 2, "dims": [16, 24, 32, 32], "depths": [1, 1, 1, 1], "attention_from": 3}
OBJECTS = pa.struct([("bbox", pa.list_(pa.list_(pa.float32()))), ("category", pa.list_(pa.string()))])


def image(number):
    """A PNG of its own size with one to three things;
    returns it with boxes [x, y, width, height] and their classes.
    """
    generator = np.random.default_rng(number)
    width, height = (int(side) for side in generator.integers(56, 80, 2))
    pixels = generator.normal(90, 12, (height, width, 3)) + generator.uniform(-30, 30, 3)
    rows, columns = np.mgrid[:height, :width]
    boxes, classes = [], []
    for _ in range(generator.integers(1, 4)):
        disc = generator.random() < 0.5
        w, h = (int(side) for side in generator.integers(14, 26, 2))
        h = w if disc else max(8, h // 2)
        left, top = int(generator.integers(0, width - w)), int(generator.integers(0, height - h))
        if any(left < x + a and x < left + w and top < y + b and y < top + h for x, y, a, b in boxes):
            continue
        if disc:
            mask = (columns + 0.5 - left - w / 2) ** 2 + (rows + 0.5 - top - h / 2) ** 2 <= (w / 2) ** 2
        else:
            mask = (columns >= left) & (columns < left + w) & (rows >= top) & (rows < top + h)
        pixels[mask] = (230, 200, 60) if disc else (40, 60, 220)
        boxes.append([float(left), float(top), float(w), float(h)])
        classes.append(CLASSES[int(disc)])
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue(), {"bbox": boxes, "category": classes}


def write_images(folder, numbers, *, change=lambda number, objects: objects, rows_per_group=7):
    """Writes images as shards; `change` may spoil their objects. Returns the folder's path as text."""
    rows = [image(number) for number in numbers]
    objects = [change(number, found) for number, (_, found) in zip(numbers, rows, strict=True)]
    images, column = [data for data, _ in rows], pa.array(objects, OBJECTS)
    return write_shards(Path(folder), images, objects=column, rows_per_group=rows_per_group)
