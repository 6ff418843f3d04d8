"""Every kind of image comes out as the same RGB image, and every kind of rubbish as BadImage."""

import io
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pretrain.data.images.decode import BadImage, decode_image, image_size
from pretrain.data.images.image_headers import exif_orientation

HEIGHT, WIDTH = 40, 64


def drawn() -> Image.Image:
    """Smooth, unlike itself under every turn and mirror, and with three different channels."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([x * 255 // (WIDTH - 1), y * 255 // (HEIGHT - 1), (x + 2 * y) % 256 // 2], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def orientation_exif(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


@pytest.mark.parametrize(
    ("form", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 8),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 8),
        ("WEBP", {"quality": 95}, 24),
        ("GIF", {}, 64),
    ],
)
def test_formats(form, options, tolerance):
    data = encoded(drawn(), form, **options)
    pixels = decode_image(memoryview(data))
    assert pixels.dtype == np.uint8 and pixels.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(pixels.astype(int) - np.asarray(drawn())).max() <= tolerance
    assert image_size(data) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_brings_the_image_upright(form, orientation):
    # what a camera held in that orientation stores: the inverse of what brings it upright
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = drawn() if stored is None else drawn().transpose(stored)
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    data = encoded(image, form, exif=orientation_exif(orientation), **options)
    assert image_size(data) == (WIDTH, HEIGHT)
    assert np.abs(decode_image(data).astype(int) - np.asarray(drawn())).max() <= 8


def test_exif_behind_the_pixels_of_a_png():
    data = encoded(drawn().transpose(Image.Transpose.ROTATE_90), "PNG")
    end = data.rindex(b"IEND") - 4
    late = data[:end] + png_chunk(b"eXIf", orientation_exif(6).removeprefix(b"Exif\0\0")) + data[end:]
    assert image_size(late) == (WIDTH, HEIGHT)
    assert (decode_image(late) == np.asarray(drawn())).all()


def test_damaged_exif_does_not_cost_the_image():
    for exif in (
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"rubbish",
    ):
        assert exif_orientation(exif) == 1
    assert exif_orientation(orientation_exif(99)) == 1
    # a LONG instead of a SHORT, big-endian
    assert exif_orientation(b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x04\0\0\0\x01\0\0\0\x06") == 6


def test_grey_and_one_bit():
    grey = drawn().convert("L")
    expected = np.asarray(grey)[..., None].repeat(3, axis=-1)
    assert (decode_image(encoded(grey, "PNG")) == expected).all()
    one_bit = grey.convert("1")
    for form in ("PNG", "TIFF"):
        assert (decode_image(encoded(one_bit, form)) == np.asarray(one_bit.convert("RGB"))).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(form):
    ramp = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    pixels = decode_image(encoded(Image.fromarray(ramp), form))
    assert (pixels == (ramp >> 8)[..., None]).all()
    assert pixels.min() == 0 and pixels.max() == 255 and len(np.unique(pixels)) == 256


def test_sixteen_bit_colour_png():
    colours = np.random.default_rng(0).integers(0, 2**16, (3, 5, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in colours)
    header = struct.pack(">IIBBBBB", 5, 3, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows))
    assert (decode_image(data + png_chunk(b"IEND", b"")) == colours >> 8).all()


def test_white_is_zero_in_a_sixteen_bit_tiff():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    data = bytearray(encoded(Image.fromarray(ramp), "TIFF"))
    entry = bytes(data).index(struct.pack("<HHI", 262, 3, 1))
    data[entry + 8] = 0
    assert (decode_image(bytes(data)) == 255 - (ramp >> 8)[..., None]).all()


def test_transparency_is_laid_on_white():
    layer = drawn().convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").resize((WIDTH, HEIGHT)))
    alpha = np.asarray(layer)[..., 3:].astype(float) / 255
    expected = np.asarray(drawn()) * alpha + 255 * (1 - alpha)
    for form, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert np.abs(decode_image(encoded(layer, form, **options)) - expected).max() <= 1
    grey_alpha = Image.new("LA", (4, 4), (0, 0))
    assert (decode_image(encoded(grey_alpha, "PNG")) == 255).all()


def test_palettes_with_and_without_transparency():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(encoded(palette, "PNG")).tolist() == [[[10, 20, 30], [200, 100, 50]]]
        clear = encoded(palette, "PNG", transparency=bytes([0, 255]))
        assert decode_image(clear).tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_cmyk():
    pixels = decode_image(encoded(drawn().convert("CMYK"), "JPEG", quality=95, subsampling=0))
    assert np.abs(pixels.astype(int) - np.asarray(drawn())).max() <= 16


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_an_agreed_range_are_refused(mode):
    with pytest.raises(BadImage, match="unsupported pixels"):
        decode_image(encoded(Image.new(mode, (4, 4)), "TIFF"))


def test_a_jpeg_may_come_smaller_but_never_below_the_smallest_side():
    big = drawn().resize((640, 400))
    data = encoded(big, "JPEG", quality=95, exif=orientation_exif(6))
    assert [decode_image(data, min_side=side).shape[:2] for side in (1, 50, 51, 101, 200, 201, 999)] == [
        (80, 50),
        (80, 50),
        (160, 100),
        (320, 200),
        (320, 200),
        (640, 400),
        (640, 400),
    ]
    assert decode_image(encoded(big, "PNG"), min_side=10).shape == (400, 640, 3)


def huge_png(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    )


def huge_webp(width, height):
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4)
    canvas += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas


def huge_bmp(width, height):
    # run-length coded: Pillow would answer this jump of 255 lines with 255 x width zero bytes
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 4, 0, 0, 2, 0)
    return b"BM" + struct.pack("<IHHI", 66, 0, 0, 62) + info + bytes(8) + b"\0\x02\xff\xff"


def huge_gif(width, height):
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0," + bytes(9) + b"\x02\x00;"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not an image"),
        (b"\xff\xd8\xff", "damaged|truncated"),
        (b"RIFF\0\0\0\0WEBP", "truncated"),
        (huge_png(20000, 20000), "too large: 20000x20000 pixels"),
        (huge_png(2**31 - 1, 2**31 - 1), "too large"),
        (huge_webp(16000, 16000), "too large: 16000x16000 pixels"),
        (huge_bmp(100_000_000, 1), "too large: 100000000x1 pixels"),
        (huge_gif(65535, 65535), "too large: 65535x65535 pixels"),
    ],
)
def test_refused_in_the_header(data, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in (decode_image, image_size):
            with pytest.raises(BadImage, match=f"^({reason})"):
                function(data)


def test_the_limit_of_pixels_is_the_caller_s():
    data = encoded(drawn(), "PNG")
    assert decode_image(data, max_pixels=HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(BadImage, match=f"^too large: {WIDTH}x{HEIGHT} pixels$"):
        decode_image(data, max_pixels=HEIGHT * WIDTH - 1)


def test_a_tiff_with_one_monstrous_tile_is_refused():
    data = encoded(drawn(), "TIFF")
    (start,) = struct.unpack_from("<I", data, 4)
    (num_entries,) = struct.unpack_from("<H", data, start)
    entries = data[start + 2 : start + 2 + 12 * num_entries]
    tiles = struct.pack("<HHII", 322, 4, 1, 60000) + struct.pack("<HHII", 323, 4, 1, 60000)
    table = struct.pack("<H", num_entries + 2) + entries + tiles + bytes(4)
    with pytest.raises(BadImage, match="too large: 60000x60000"):
        decode_image(data[:4] + struct.pack("<I", len(data)) + data[8:] + table)


def test_a_progressive_jpeg_of_endless_scans_is_refused():
    data = encoded(Image.new("L", (6000, 6000)), "JPEG", progressive=True)
    assert decode_image(data).shape == (6000, 6000, 3)
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(BadImage, match="too many scans"):
        decode_image(data[:scan] + data[scan:-2] * 400 + data[-2:])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_cut_in_half_is_never_accepted(form):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype(np.uint8))
    data = encoded(noise, form)
    with pytest.raises(BadImage, match=r"^truncated$"):
        decode_image(data[: len(data) // 2])


SEEDS = [
    encoded(drawn(), "JPEG", exif=orientation_exif(6)),
    encoded(drawn(), "JPEG", progressive=True),
    encoded(drawn().convert("CMYK"), "JPEG"),
    encoded(drawn(), "PNG"),
    encoded(drawn().quantize(7), "PNG", transparency=3),
    encoded(drawn(), "WEBP", exif=orientation_exif(3)),
    encoded(drawn(), "TIFF", compression="tiff_lzw"),
    encoded(drawn(), "TIFF", compression="jpeg"),
    encoded(drawn().quantize(16), "BMP"),
    encoded(drawn(), "GIF"),
]


@settings(max_examples=400, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    headers=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4),
    kept=st.floats(0, 1) | st.just(1.0),
)
def test_mutated_files_give_pixels_or_bad_image(seed, changes, headers, kept):
    data = bytearray(seed)
    for place, value in changes:
        data[int(place * len(data))] = value
    for place, value in headers:
        data[place % len(data)] = value
    data = bytes(data[: int(kept * len(data))])
    try:
        pixels = decode_image(data, max_pixels=1_000_000)
        width, height = image_size(data, max_pixels=1_000_000)
    except BadImage as error:
        assert 0 < len(str(error)) < 80 and "\n" not in str(error)
    else:
        assert pixels.dtype == np.uint8 and pixels.shape == (height, width, 3)


def test_no_torch_at_start_up():
    import subprocess

    code = (
        "import pretrain.data.images.decode, pretrain.data.reading.manifest, sys; assert 'torch' not in "
        "sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
