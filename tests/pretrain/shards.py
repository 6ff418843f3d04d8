"""Small data sets made on the spot: each image carries its row number in its colour,
so a test sees which row came.
"""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(number, *, size=(10, 8), form="PNG"):
    """An image of one colour that names `number` (below 2**24)."""
    colour = (number >> 16, number >> 8 & 255, number & 255)
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, form)
    return buffer.getvalue()


def number_of(pixels):
    """The number that a crop of such an image carries."""
    red, green, blue = (int(channel) for channel in pixels[:, 0, 0])
    return red << 16 | green << 8 | blue


def photo(number, *, side=48):
    """A JPEG with something to see: stripes whose direction and colour depend on the number."""
    generator = np.random.default_rng(number)
    rows, columns = np.mgrid[:side, :side]
    angle = generator.uniform(0, np.pi)
    wave = np.sin((rows * np.cos(angle) + columns * np.sin(angle)) * generator.uniform(0.3, 1.5))
    pixels = (
        128 + 80 * wave[..., None] * generator.uniform(-1, 1, 3) + generator.normal(0, 12, (side, side, 3))
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_shards(folder, images, *, rows_per_group=7, rows_per_file=40, plain_binary=False, **columns):
    """Writes encoded images (None for null) and further columns as Parquet shards;
    returns the folder's path as text.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(images), rows_per_file):
        part = slice(start, start + rows_per_file)
        if plain_binary:
            array = pa.array(images[part], pa.binary())
        else:
            array = pa.array(
                [None if data is None else {"bytes": data, "path": ""} for data in images[part]], IMAGE
            )
        table = pa.table({"image": array, **{name: values[part] for name, values in columns.items()}})
        pq.write_table(
            table, folder / f"shard-{start // rows_per_file:05d}.parquet", row_group_size=rows_per_group
        )
    return str(folder)


def write_by_path(folder, num):
    """Photos in `photos` below a folder, and in `data` a Parquet file that holds only their paths."""
    for name in ("photos", "data"):
        (folder / name).mkdir()
    for number in range(num):
        (folder / "photos" / f"{number}.jpg").write_bytes(photo(number))
    paths = pa.array([{"bytes": None, "path": f"{number}.jpg"} for number in range(num)], IMAGE)
    pq.write_table(pa.table({"image": paths}), folder / "data" / "a.parquet")
