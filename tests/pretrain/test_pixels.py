"""The fast way of decoding gives what the slow one gives, for every kind of image,
and the same reasons for bad ones.
"""

import io

import numpy as np
import pytest
from PIL import Image

from pretrain.data.images.decode import BadImage, decode_image, image_size
from pretrain.data.images.pixels import _headers, as_channels, open_image
from tests.pretrain.test_decode import drawn, encoded, orientation_exif


def pixels_of(data, channels=3):
    opened = open_image(data, channels=channels)
    groups = opened.decode(1)
    assert groups.shape[1:3] == (opened.height, opened.width) and groups.dtype == np.uint8
    return as_channels(groups, channels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_images_are_upright(form, orientation):
    data = encoded(drawn(), form, exif=orientation_exif(orientation))
    assert open_image(data).width == image_size(data)[0]
    np.testing.assert_array_equal(pixels_of(data), decode_image(data).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}])
def test_jpegs_of_every_kind(mode, options):
    data = encoded(drawn().convert(mode), "JPEG", **options)
    np.testing.assert_array_equal(pixels_of(data), decode_image(data).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_pngs_of_every_kind(mode):
    image = (
        Image.fromarray((np.arange(40 * 64).reshape(40, 64) * 25).astype(np.uint16))
        if mode == "I;16"
        else None
    )
    data = encoded(image or drawn().convert(mode), "PNG")
    np.testing.assert_array_equal(pixels_of(data), decode_image(data).transpose(2, 0, 1))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_grey_is_the_luma_of_colours(form):
    data = encoded(drawn(), form, **({"quality": 95, "subsampling": 0} if form == "JPEG" else {}))
    (grey,) = pixels_of(data, channels=1)
    assert np.abs(grey.astype(int) - np.asarray(drawn().convert("L"))).max() <= (4 if form == "JPEG" else 0)


@pytest.mark.parametrize("denominator", [2, 4, 8])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_may_be_decoded_smaller(denominator, orientation):
    data = encoded(drawn().resize((203, 101)), "JPEG", quality=95, exif=orientation_exif(orientation))
    small = open_image(data).decode(denominator)[0, :, :, :3].copy()
    whole = decode_image(data)
    assert small.shape[:2] == tuple(-(-side // denominator) for side in whole.shape[:2])
    wanted = np.asarray(Image.fromarray(whole).resize(small.shape[1::-1], Image.Resampling.BOX))
    assert np.abs(small.astype(int) - wanted).mean() < 4


def numpy_file(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [2, 4, 5, 13])
@pytest.mark.parametrize("by_columns", [False, True])
def test_bands_come_as_they_are_stored(channels, by_columns):
    bands = np.random.default_rng(0).integers(0, 256, (9, 7, channels), dtype=np.uint8)
    stored = np.asfortranarray(bands) if by_columns else bands
    np.testing.assert_array_equal(pixels_of(numpy_file(stored), channels), bands.transpose(2, 0, 1))
    high = bands.astype(np.uint16) << 8
    np.testing.assert_array_equal(pixels_of(numpy_file(high), channels), bands.transpose(2, 0, 1))


def test_transparency_may_be_a_band():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8))
    np.testing.assert_array_equal(pixels_of(encoded(image, "PNG"), 4), np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("data", "channels", "reason"),
    [
        (b"", 3, "empty"),
        (b"\xff\xd8\xff nothing", 3, "damaged|truncated"),
        (
            numpy_file(np.zeros((4, 4, 3), np.uint8)),
            5,
            r"array of shape \(4, 4, 3\), not \[height, width, 5\]",
        ),
        (numpy_file(np.zeros((4, 4, 5), np.float32)), 5, "array of float32, not uint8 or uint16"),
        (numpy_file(np.zeros((4, 4, 5), np.uint8))[:-1], 5, "truncated"),
        (b"\x93NUMPY\x01\x00 rubbish", 5, "damaged"),
        (encoded(drawn(), "PNG"), 5, "RGB image, not 5 bands"),
    ],
)
def test_reasons(data, channels, reason):
    with pytest.raises(BadImage, match=reason):
        open_image(data, channels=channels).decode(1)


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
def test_a_cut_jpeg_is_bad_for_both_ways(cut):
    data = encoded(drawn(), "JPEG", quality=95)
    data = data[: int(len(data) * cut)]
    with pytest.raises(BadImage) as slow:
        decode_image(data)
    with pytest.raises(BadImage) as fast:
        open_image(data).decode(1)
    assert str(fast.value) == str(slow.value)


def test_rubbish_behind_a_jpeg_is_borne():
    data = encoded(drawn(), "JPEG", quality=95) + b"more"
    np.testing.assert_array_equal(pixels_of(data), decode_image(data).transpose(2, 0, 1))


def segment(marker, content):
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def test_the_head_of_a_jpeg_is_read_up_to_its_pixels():
    data = encoded(drawn(), "JPEG", exif=orientation_exif(6))
    start, rest = data[:2], data[2:]
    # an APP1 of another kind first, one that only mentions EXIF, and fill bytes
    before = (
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>") + segment(0xFE, b"Exif\0\0II*\0") + b"\xff" * 7
    )
    for changed in (data, start + before + rest):
        assert open_image(changed).width == image_size(changed)[0] == drawn().height
        np.testing.assert_array_equal(pixels_of(changed), decode_image(changed).transpose(2, 0, 1))
    # what would take a loop over each byte long is left to the library:
    # else the orientation would be found, 6
    endless = start + b"\xff" * 20_000_000 + rest
    assert _headers(endless) == (1, True) and _headers(start + segment(0xFE, b"") * 2_000_000 + rest) == (
        1,
        True,
    )
    assert _headers(data) == (6, False)
    assert _headers(encoded(drawn(), "JPEG", progressive=True)) == (1, True)
    assert _headers(b"\xff\xd8\xff") == (1, True)


def test_only_large_photos_have_their_colours_repeated():
    for side, differs in ((255, False), (256, True)):
        data = encoded(drawn().resize((300, side)), "JPEG", quality=90)
        plain, fast = (open_image(data, fast=fast).decode(1).copy() for fast in (False, True))
        assert (plain != fast).any() == differs
        assert np.abs(plain.astype(int) - fast).mean() < 3
