"""Corruptions: pure functions of the sample, worse with strength, and what their names say."""

import io

import numpy as np
import pytest
from PIL import Image

from pretrain.data.views.corruptions import CORRUPTIONS, GROUPS, STRENGTHS, CorruptedImages, corrupt
from pretrain.data.views.random_views import CentralCrop


def image(side=64, channels=3, seed=0):
    """Something between a photo and noise: soft blobs with edges."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)).copy()
    pixels[side // 4 : side // 2, side // 3 : side // 2] = (230, 40, 60)
    return pixels[..., :channels]


def far(a, b):
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_gets_worse_with_strength_and_repeats(kind):
    pixels = [image(seed=seed) for seed in range(4)]
    distances = [
        np.mean([far(corrupt(p, kind, s, 5 + i), p) for i, p in enumerate(pixels)]) for s in STRENGTHS
    ]
    assert distances[0] > 0.5 and distances[-1] > 1.15 * distances[0]
    # weather changes its kind from one strength to the next, and each draws its own clouds and flakes
    assert kind in ("fog", "snow") or distances == sorted(distances)
    changed = corrupt(pixels[0], kind, 3, 7)
    assert changed.dtype == np.uint8 and changed.shape == pixels[0].shape
    assert np.array_equal(changed, corrupt(pixels[0], kind, 3, 7))
    drawn = kind not in ("defocus blur", "zoom blur", "brightness", "contrast", "pixelate", "jpeg")
    assert np.array_equal(changed, corrupt(pixels[0], kind, 3, 8)) != drawn


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize(("size", "channels"), [((1, 1), 3), ((7, 30), 3), ((24, 16), 1), ((16, 16), 5)])
def test_any_shape_is_taken(kind, size, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, channels), dtype=np.uint8)
    assert corrupt(pixels, kind, 5, 1).shape == pixels.shape
    assert corrupt(np.zeros_like(pixels), kind, 1, 1).dtype == np.uint8


def test_every_kind_is_in_one_group():
    assert sorted(kind for members in GROUPS.values() for kind in members) == sorted(CORRUPTIONS)


def test_they_are_what_their_names_say():
    grey = np.full((200, 200, 3), 128, np.uint8)
    assert np.std(corrupt(grey, "gaussian noise", 1, 0) / 255.0) == pytest.approx(0.08, rel=0.02)
    assert np.std(corrupt(grey, "shot noise", 2, 0) / 255.0) == pytest.approx(
        (128 / 255 / 25) ** 0.5, rel=0.03
    )
    impulses = corrupt(grey, "impulse noise", 5, 0)
    assert np.isin(impulses, (0, 255)).mean() == pytest.approx(0.27, abs=0.01)
    for blur in GROUPS["blur"]:
        assert far(corrupt(grey, blur, 5, 0), grey) < 0.6  # nothing to blur, and no dark border
    point = np.zeros((224, 224, 3), np.uint8)
    point[111:114, 111:114] = 255
    rows, columns = np.nonzero(corrupt(point, "defocus blur", 2, 0)[..., 0])
    assert rows.mean() == pytest.approx(112, abs=0.6) and columns.mean() == pytest.approx(112, abs=0.6)
    assert np.hypot(rows - 112, columns - 112).max() == pytest.approx(4 + 1.4, abs=1.2)
    pixels = image(120)
    assert corrupt(pixels, "brightness", 2, 0).mean() > pixels.mean() + 25
    flat = corrupt(pixels, "contrast", 1, 0)
    assert np.std(flat, axis=(0, 1)) == pytest.approx(0.4 * np.std(pixels, axis=(0, 1)), rel=0.02)
    assert np.unique(corrupt(pixels, "pixelate", 5, 0)[:, 60], axis=0).shape[0] <= 30
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=25)
    assert np.array_equal(corrupt(pixels, "jpeg", 1, 0), np.asarray(Image.open(buffer)))


def test_a_sample_is_corrupted_alike_in_every_batch():
    encoded = []
    for seed in range(4):
        buffer = io.BytesIO()
        Image.fromarray(image(seed=seed)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())

    def made(rows):
        filling = CorruptedImages(CentralCrop(32), "snow", 4).begin(np.zeros(len(rows), int), np.array(rows))
        for index, row in enumerate(rows):
            filling.fill(index, encoded[row])
        assert filling.parameters is None and filling.geometry_VB5 is None
        return filling.arrays[0]

    whole = made([0, 1, 2, 3])
    assert np.array_equal(made([3, 1])[0], whole[3]) and np.array_equal(made([3, 1])[1], whole[1])
    assert not np.array_equal(whole[0], whole[1])
