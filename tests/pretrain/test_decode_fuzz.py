"""Whatever happens to the bytes of an image, the answer is an array or BadImage:
in bounded time, and in bounded memory.
"""

import io
import random
import struct
import subprocess
import sys
import time
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pretrain.data.images.decode import BadImage, decode_image, image_size
from pretrain.data.images.image_headers import image_format
from pretrain.data.images.planes import as_planes

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # Pillow warns of every second thing in a bad TIFF

MAX_PIXELS = 1_000_000
MAX_SECONDS = 3.0  # of this thread's own time; the slowest honest image of so many pixels takes 0.1
MAX_REASON = 80

# what header fields are set to: ends of ranges, signs, sizes just beyond what there is
NUMBERS = [
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    2**24 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
]


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _seeds():
    y, x = np.mgrid[:24, :32]
    image = Image.fromarray(np.stack([x * 8, y * 10, (x * y) % 256], axis=-1).astype(np.uint8))
    grey, palette, alpha = image.convert("L"), image.quantize(16), image.convert("RGBA")
    alpha.putalpha(grey)
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    options = [
        *[
            (image, "JPEG", {"exif": exif.tobytes()}),
            (image, "JPEG", {"progressive": True}),
            (grey, "JPEG", {}),
        ],
        *[(image.convert("CMYK"), "JPEG", {}), (image, "JPEG", {"restart_marker_rows": 1})],
        *[
            (image, "PNG", {"exif": exif.tobytes()}),
            (palette, "PNG", {"transparency": 3}),
            (alpha, "PNG", {}),
        ],
        *[(sixteen, "PNG", {}), (grey.convert("1"), "PNG", {}), (image, "PNG", frames)],
        *[
            (image, "WEBP", {"exif": exif.tobytes()}),
            (alpha, "WEBP", {"lossless": True}),
            (image, "WEBP", frames),
        ],
        *[(image, "BMP", {}), (palette, "BMP", {}), (grey.convert("1"), "BMP", {}), (alpha, "BMP", {})],
        *[
            (image, "TIFF", {"compression": kind})
            for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        ],
        *[
            (grey.convert("1"), "TIFF", {"compression": "group4"}),
            (sixteen, "TIFF", {}),
            (alpha, "TIFF", {}),
        ],
        *[(palette, "TIFF", {}), (image.convert("CMYK"), "TIFF", {}), (image.convert("YCbCr"), "TIFF", {})],
        *[(image, "TIFF", {"big_tiff": True}), (image, "TIFF", {"tiled": True})],
        *[
            (palette, "GIF", {}),
            (palette, "GIF", {"transparency": 2, "interlace": 1}),
            (image, "GIF", frames),
        ],
    ]
    stored = [
        as_planes(np.asarray(image)),
        as_planes(np.zeros((9, 7, 3), np.uint8)),
        as_planes(np.asarray(image.resize((257, 256)))),
    ]
    for data in stored:
        decode_image(data)  # compiles, which would take more than `MAX_SECONDS`
    return [*(encoded(image, form, **more) for image, form, more in options), *stored]


SEEDS = _seeds()


def mutated(data: bytes, changes, other: bytes) -> bytes:
    """The data after changes (what, share of the length where, share of the length or of `NUMBERS`)."""
    changed = bytearray(data)
    for what, where, amount in changes:
        place, number = int(where * len(changed)), NUMBERS[int(amount * len(NUMBERS))]
        if not changed:
            break
        if what == "flip":
            changed[place] ^= 1 << int(amount * 8)
        elif what == "byte":
            changed[place] = int(amount * 256)
        elif what == "cut":
            del changed[place:]
        elif what == "remove":
            del changed[place : place + int(amount * 64)]
        elif what == "repeat":
            changed[place:place] = changed[place : place + int(amount * 256)] * 3
        elif what == "splice":
            changed[place:] = other[int(amount * len(other)) :]
        elif what in ("<H", ">H", "<I", ">I"):
            # half of them in the header, where the sizes stand
            place = place % 64 if int(where * 1e6) % 2 else place
            field = struct.pack(what, number % 2 ** (8 * struct.calcsize(what)))
            changed[place : place + len(field)] = field
        elif what == "crc":
            changed = bytearray(with_right_checksums(bytes(changed)))
    return bytes(changed)


CHANGES = ["flip", "byte", "cut", "remove", "repeat", "splice", "<H", ">H", "<I", ">I", "crc"]


def with_right_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums of their content, so that a change is not found by them."""
    parts, position = [data[:8]], 8
    while data.startswith(b"\x89PNG") and position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        body = data[position + 4 : position + 8 + length]
        parts.append(data[position : position + 4] + body + struct.pack(">I", zlib.crc32(body)))
        position += 12 + length
    return b"".join(parts) if len(parts) > 1 else data


def look(data: bytes) -> str:
    """Decodes and returns the reason why it is bad, or an empty text."""
    started = time.thread_time()
    try:
        pixels = decode_image(data, max_pixels=MAX_PIXELS)
    except BadImage as error:
        reason = str(error)
        assert 0 < len(reason) <= MAX_REASON and reason.isprintable()
    else:
        reason = ""
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
        # the size that the header tells is that of the pixels
        assert image_size(data, max_pixels=MAX_PIXELS) == (pixels.shape[1], pixels.shape[0])
        with suppress(BadImage):
            assert decode_image(data, min_side=4, max_pixels=MAX_PIXELS).shape[2] == 3
    assert time.thread_time() - started < MAX_SECONDS
    return reason


def test_seeds_are_good():
    assert {image_format(data) for data in SEEDS} == {"JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF", "decoded"}
    assert [look(data) for data in SEEDS] == [""] * len(SEEDS)


FRACTION = st.floats(0, 1, exclude_max=True)


@settings(max_examples=600, deadline=None)
@given(
    data=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.sampled_from(CHANGES), FRACTION, FRACTION), min_size=1, max_size=6),
    other=st.sampled_from(SEEDS),
)
def test_changed_files(data, changes, other):
    look(mutated(data, changes, other))


@settings(max_examples=300, deadline=None)
@given(
    start=st.sampled_from([b"", *(data[:12] for data in SEEDS), *(data[:40] for data in SEEDS)]),
    rest=st.binary(max_size=400),
)
@example(b"", b"")
def test_random_bytes(start, rest):
    look(start + rest)


def fuzz(seconds: float, seed: int) -> dict[str, int]:
    """Tries random changes for so many seconds of CPU; returns how often each reason came."""
    generator, counts = random.Random(seed), {}
    stop = time.process_time() + seconds
    while time.process_time() < stop:
        data, other = generator.choice(SEEDS), generator.choice(SEEDS)
        changes = [
            (generator.choice(CHANGES), generator.random(), generator.random())
            for _ in range(generator.randint(1, 6))
        ]
        changed = mutated(data, changes, other)
        try:
            reason = look(changed)
        except BaseException:
            print(changed.hex(), flush=True)
            raise
        kind = reason.partition(":")[0]
        counts[kind] = counts.get(kind, 0) + 1
    return counts


@pytest.mark.slow
def test_thousands_of_changed_files_in_little_memory():
    # 64 MiB are many times what 10^6 pixels need; a decoder that believes a header asks for gigabytes
    code = """if True:
        import resource
        from tests.pretrain.test_decode_fuzz import SEEDS, fuzz, look
        for data in SEEDS:
            look(data)
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 64 * 2**20,) * 2)
        counts = fuzz(20.0, seed=0)
        print(counts)
        assert sum(counts.values()) > 1000 and counts[""] > 100
        assert "not enough memory" not in counts
    """
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
