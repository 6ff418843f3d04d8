"""The proof of an export: images go through Fovea and through what was exported,
and the answers are compared.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import yaml
from PIL import Image

from cluster.errors import UserError
from pretrain.data.hashing import uniform
from pretrain.data.images.decode import BadImage
from pretrain.data.images.pixels import open_image
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.shards import Shards, read_in_sequence
from pretrain.exporting.exported import Answers, Exported

NUM_IMAGES = 16
_SIZES = [
    (37, 61),
    (113, 59),
    (64, 64),
    (255, 97),
    (91, 301),
    (223, 150),
    (45, 45),
    (129, 200),
]  # width and height
SAME_BOX = 0.5  # intersection over union from which on two boxes are one


def proof_images(exported: Exported) -> tuple[list[bytes], str]:
    """`NUM_IMAGES` image files, and in words what they are:
    of the run's validation data where it can be read, else drawn.
    """
    channels = exported.encoder.in_channels
    settings = yaml.safe_load(exported.run["settings"]) if exported.run.get("settings") else {}
    url = settings.get("validation_url") or (settings.get("knn") or {}).get("test_url")
    if url:
        # data may have moved, or need keys that are not here
        with suppress(UserError):
            found = _first_images(url, (settings.get("data") or {}).get("image_column", "image"), channels)
            if len(found) == NUM_IMAGES:
                return found, f"the first {NUM_IMAGES} images of the validation data"
    return [
        _drawn(number, channels) for number in range(NUM_IMAGES)
    ], f"{NUM_IMAGES} drawn images of odd sizes"


def _first_images(url: str, image_column: str, channels: int) -> list[bytes]:
    manifest = load_manifest(url, image_column=image_column)
    images: list[bytes] = []
    for rows in read_in_sequence(Shards(manifest.sample(4 * NUM_IMAGES), image_column=image_column)):
        for data in rows.images:
            if data is None:
                continue
            with suppress(BadImage):
                open_image(data, channels=channels).decode(1)
                images.append(bytes(data))
            if len(images) == NUM_IMAGES:
                return images
    return images


def _drawn(number: int, channels: int) -> bytes:
    """An image of soft shapes, the same at every call:
    without edges, whose position by a pixel would count for much.
    """
    width, height = _SIZES[number % len(_SIZES)]
    width, height = width + 2 * (number // len(_SIZES)), height + number // len(_SIZES)
    coarse_HWC = np.stack(
        [uniform(77, number, channel, np.arange(48)).reshape(6, 8) for channel in range(channels)], -1
    )
    smooth_HWC = np.stack(
        [
            np.asarray(
                Image.fromarray(band.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
            )
            for band in np.moveaxis(coarse_HWC, -1, 0)
        ],
        -1,
    )
    rows, columns = np.mgrid[:height, :width]
    for shape in range(3):
        across, down, radius, *colour = uniform(78, number, shape, np.arange(3 + channels)).tolist()
        far = np.hypot(columns - across * width, rows - down * height) / (
            (0.15 + 0.2 * radius) * min(width, height)
        )
        share_HW1 = np.exp(-(far**2))[..., None]
        smooth_HWC = share_HW1 * colour + (1 - share_HW1) * smooth_HWC
    pixels_HWC = (smooth_HWC.clip(0, 1) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    if channels not in (1, 3):
        np.save(buffer, pixels_HWC, allow_pickle=False)
    else:
        Image.fromarray(pixels_HWC[..., 0] if channels == 1 else pixels_HWC).save(buffer, "PNG")
    return buffer.getvalue()


def framed(exported: Exported, images: Sequence[bytes]) -> tuple[list[np.ndarray], np.ndarray | None]:
    """What Fovea makes of images: the arrays and geometry of a batch."""
    numbers = np.arange(len(images))
    filling = exported.transform.begin(numbers, numbers)
    for index, image in enumerate(images):
        filling.fill(index, image)
    return filling.arrays, filling.geometry_VB5


def differences(one: Answers, other: Answers) -> list[np.ndarray]:
    """How far two networks' answers to the same images lie apart, of each image: of probabilities and scores
    the largest difference, of features that of their length, of each box the difference of its score to that
    of the other's box in its place (the whole score where there is none)."""
    if "boxes" in one:
        pairs = zip(_boxes_of(one), _boxes_of(other), strict=True)
        return [np.array(_unmatched(a, b) + _unmatched(b, a)) for a, b in pairs]
    found = np.zeros(len(next(iter(one.values()))))
    for name, array in one.items():
        a, b = (_rows(values, max(array[0].size, other[name][0].size)) for values in (array, other[name]))
        if name == "features":
            lengths = np.maximum(np.linalg.norm(a, axis=1), 1e-12)
            found = np.fmax(found, np.linalg.norm(a - b, axis=1) / lengths)
        elif a.size:
            found = np.maximum(found, np.abs(a - b).max(1))
    return [np.array([value]) for value in found]


def max_difference(one: Answers, other: Answers) -> float:
    """The largest of all `differences`."""
    return max((float(of_image.max()) for of_image in differences(one, other) if of_image.size), default=0.0)


def mean_difference(one: Answers, other: Answers) -> float:
    """The mean of `differences` over images: where images are scaled a little otherwise,
    a single one may tip over.
    """
    means = [float(of_image.mean()) for of_image in differences(one, other) if of_image.size]
    return sum(means) / max(1, len(means))


def _rows(values: np.ndarray, length: int) -> np.ndarray:
    """float64 [B, length]: of each image all numbers, behind them zeros."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    return np.pad(flat, ((0, 0), (0, length - flat.shape[1])))


def _boxes_of(answers: Answers) -> list[list[Any]]:
    def is_box(found: Any) -> bool:
        (left, top, right, bottom), _, score = found
        return bool(score > 0 and right > left and bottom > top)

    several = zip(
        answers["boxes"].tolist(), answers["labels"].tolist(), answers["scores"].tolist(), strict=True
    )
    return [[found for found in zip(*one, strict=True) if is_box(found)] for one in several]


def _unmatched(some: list[Any], others: list[Any]) -> list[float]:
    """Of each box the difference in score to the nearest box of the same class that lies in its place."""
    found = []
    for box, label, score in some:
        near = [other[2] for other in others if other[1] == label and _overlap(box, other[0]) >= SAME_BOX]
        found.append(min((abs(score - one) for one in near), default=score))
    return found


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inside = max(0.0, width) * max(0.0, height)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return inside / (area - inside) if area > inside else 0.0


def check(what: str, difference: float, bound: float, *, mean: float | None = None) -> str:
    """The line that an export prints of a comparison. Raises UserError when the difference (with `mean`,
    that) is above the bound."""
    compared = difference if mean is None else mean
    told = f"{difference:.2g}" if mean is None else f"{difference:.2g}, on average {mean:.2g}"
    if not compared <= bound:
        raise UserError(f"{what} differ by {told}, more than {bound:g}: nothing was written")
    return f"{what}: largest difference {told} (allowed: {bound:g})"
