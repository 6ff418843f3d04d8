"""Images that cost what photos cost, for machines without any:
textures whose spectrum falls as that of photos, with edges.

Amplitudes fall as one over the frequency, as in natural images (Field, 1987,
https://doi.org/10.1364/JOSAA.4.002379); a few flat shapes give edges. JPEG of quality 80
makes some 60 kB of 480 x 360 pixels.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

NUM_FIELDS, FIELD_SIDE = 12, 1024
WIDTH, HEIGHT, QUALITY = 480, 360, 80


def write_photo_like(folder: Path, num: int, *, seed: int = 0) -> Path:
    """Writes `num` JPEG files into `folder`/train, which it makes; returns `folder`."""
    generator = np.random.default_rng(seed)
    fields = [_field(generator) for _ in range(NUM_FIELDS)]
    (folder / "train").mkdir(parents=True)

    def write(index: int) -> None:
        image = _image(fields, np.random.default_rng((seed, index)))
        (folder / "train" / f"{index:06}.jpg").write_bytes(image)

    with ThreadPoolExecutor() as threads:
        list(threads.map(write, range(num)))
    return folder


def _field(generator: np.random.Generator) -> np.ndarray:
    """Float [side, side, 3] with standard deviation 1: mostly grey, some colour."""
    frequency = np.hypot(np.fft.fftfreq(FIELD_SIDE)[:, None], np.fft.rfftfreq(FIELD_SIDE)[None])
    frequency[0, 0] = np.inf

    def noise() -> np.ndarray:
        spectrum = np.fft.rfft2(generator.standard_normal((FIELD_SIDE, FIELD_SIDE))) / frequency
        values = np.fft.irfft2(spectrum, (FIELD_SIDE, FIELD_SIDE))
        return values / values.std()

    grey = noise()
    return np.stack([grey + 0.4 * noise() for _ in range(3)], axis=-1).astype(np.float32)


def _image(fields: list[np.ndarray], generator: np.random.Generator) -> bytes:
    """A JPEG: a window of one field with a random contrast, and some shapes of another brightness."""
    field = fields[generator.integers(len(fields))]
    left, top = (int(generator.integers(FIELD_SIDE - side)) for side in (WIDTH, HEIGHT))
    window = field[top : top + HEIGHT, left : left + WIDTH]
    pixels = np.clip(generator.uniform(90, 160) + generator.uniform(25, 60) * window, 0, 255).astype(
        np.uint8
    )
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(generator.integers(2, 7)):
        x, y, wide, high = generator.uniform(0, 1, 4) * (WIDTH, HEIGHT, WIDTH / 2, HEIGHT / 2)
        colour = (*(int(value) for value in generator.integers(0, 256, 3)), int(generator.integers(60, 160)))
        shape = draw.ellipse if generator.uniform() < 0.5 else draw.rectangle
        shape((x, y, x + wide, y + high), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
