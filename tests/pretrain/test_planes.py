"""Images stored decoded: what comes back, crops cut out of planes, damage,
and the commands that write such shards.
"""

import io
import itertools
import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import UserError, run_command
from pretrain.__main__ import main as pretrain
from pretrain.data import __main__ as commands
from pretrain.data.checking.check import check
from pretrain.data.images.bands import decode_bands, num_bands
from pretrain.data.images.decode import BadImage, decode_image, decode_whole, image_size, set_max_pixels
from pretrain.data.images.image_headers import image_format
from pretrain.data.images.pixels import as_channels, open_image
from pretrain.data.images.planes import COLOURS, GREY, HEADER, RGB, Planes, as_planes
from pretrain.data.packing.importing import ImportOptions, import_images
from pretrain.data.packing.preparing import stored_decoded
from pretrain.data.packing.regroup import regroup
from pretrain.data.reading.kept import KeptImages
from pretrain.data.reading.loader import Loader, filled
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.order import Order
from pretrain.data.reading.shards import Shards, read_in_sequence
from pretrain.data.views.random_views import CentralCrop, CropSource, RandomViews
from pretrain.data.views.recipes import simclr_views
from tests.pretrain.runs import arguments, trace
from tests.pretrain.shards import photo, write_shards
from tests.pretrain.test_decode import encoded, orientation_exif
from tests.pretrain.test_pixels import numpy_file


def smooth(width, height, seed=0):
    """Colours that change by less than a level a pixel, well within [0, 255]."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * a + y * b + c) for a, b, c in generator.uniform(0.001, 0.006, (3, 3))]
    return np.stack([128 + 60 * wave for wave in waves], axis=-1).astype(np.uint8)


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def jpeg(pixels, **options):
    return encoded(Image.fromarray(pixels), "JPEG", **{"quality": 95, "subsampling": 2, **options})


def apart(one, other):
    return np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 3), (31, 255), (255, 255), (400, 255)])
@pytest.mark.parametrize("grey", [False, True])
def test_small_and_grey_images_come_back_exactly(size, grey):
    pixels = noise(*size)
    if grey:
        pixels = np.repeat(pixels[:, :, :1], 3, axis=2)
    data = as_planes(pixels)
    assert len(data) == HEADER.size + size[0] * size[1] * (1 if grey else 3)
    assert (
        image_format(data) == "decoded"
        and image_size(data) == size
        and num_bands(data) == (1 if grey else 3)
    )
    np.testing.assert_array_equal(decode_image(data), pixels)
    np.testing.assert_array_equal(as_channels(open_image(data).decode(1), 3), pixels.transpose(2, 0, 1))
    wanted = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(as_channels(open_image(data, channels=1).decode(1), 1)[0], wanted)


@pytest.mark.parametrize("size", [(256, 256), (257, 256), (256, 301), (311, 257)])
def test_large_images_keep_luma_and_the_colours_of_blocks(size):
    width, height = size
    pixels = noise(*size)
    planes = Planes.of(as_planes(pixels))
    assert planes.kind == COLOURS
    luma, blue, red = (plane.astype(np.float64) for plane in planes.split())
    r, g, b = pixels.astype(np.float64).transpose(2, 0, 1)
    wanted = 0.299 * r + 0.587 * g + 0.114 * b
    assert np.abs(luma - wanted).max() <= 0.51
    for plane, channel, factor in ((blue, b, 1.772), (red, r, 1.402)):
        whole = np.pad((channel - wanted) / factor, ((0, height % 2), (0, width % 2)), mode="edge")
        means = whole.reshape(plane.shape[0], 2, plane.shape[1], 2).mean((1, 3))
        assert np.abs(plane - (128 + means).clip(0, 255)).max() <= 0.51
    made = decode_image(as_planes(pixels)).astype(np.float64)
    cb, cr = (np.kron(plane - 128, np.ones((2, 2)))[:height, :width] for plane in (blue, red))
    again = np.stack(
        [luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb], axis=-1
    ).clip(0, 255)
    assert np.abs(made - again).max() <= 0.75  # half a level of rounding, and a quarter of the factors'
    grey = as_channels(open_image(as_planes(pixels), channels=1).decode(1), 1)[0]
    np.testing.assert_array_equal(grey, np.asarray(Image.fromarray(pixels).convert("L")))


@pytest.mark.parametrize("size", [(256, 256), (301, 257)])
def test_smooth_colours_come_back_within_two_levels(size):
    pixels = smooth(*size)
    assert apart(decode_image(as_planes(pixels)), pixels).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_comes_back_upright_as_random_views_see_it(orientation):
    generator = np.random.default_rng(1)
    textured = (smooth(304, 272) + generator.integers(-20, 20, (272, 304, 1))).astype(np.uint8)
    data = jpeg(textured, exif=orientation_exif(orientation))
    wanted = as_channels(open_image(data, fast=True).decode(1), 3)
    stored = stored_decoded(data)
    assert image_size(stored) == image_size(data) == wanted.shape[:0:-1]
    assert decode_whole(stored).orientation == 1
    found = as_channels(open_image(stored).decode(1), 3)
    assert apart(found, wanted).max() <= 2 and (found == wanted).mean() > 0.6
    assert stored_decoded(stored) is stored


def test_what_planes_cannot_hold_stays_as_it_is():
    transparent = encoded(Image.fromarray(noise(300, 300)).convert("RGBA"), "PNG")
    assert stored_decoded(transparent) is transparent
    assert image_format(stored_decoded(transparent, short_side=256)) == "decoded"
    with pytest.raises(BadImage):
        stored_decoded(numpy_file(np.zeros((9, 9, 5), np.uint8)))
    with pytest.raises(BadImage, match="RGB image, not 5 bands"):
        decode_bands(as_planes(noise(9, 9)), 5)


@pytest.mark.parametrize("size", [8, 33, 96, 224])
@pytest.mark.parametrize("cubic", [False, True])
def test_crops_out_of_planes_are_those_of_the_image(size, cubic):
    generator = np.random.default_rng(size)
    pixels = (
        (smooth(401, 303, seed=3) + generator.integers(-25, 25, (303, 401, 1)))
        .clip(30, 225)
        .astype(np.uint8)
    )
    stored = open_image(as_planes(pixels))
    whole = stored.decode(1).copy()
    boxes = [(0, 0, 401, 303), (400, 302, 1, 1), (100.25, 3, 33, 290.5)]
    if not cubic:  # windows that reach beyond the image
        boxes += [(-40.5, -30, 480, 480), (-300, 200, 500, 500)]
    for _ in range(20):
        w, h = generator.uniform(5, 400), generator.uniform(5, 300)
        boxes.append((generator.uniform(0, 401 - w), generator.uniform(0, 303 - h), w, h))
    for box, flipped in itertools.product(boxes, [False, True]):
        found, wanted = (np.empty((3, size, size), np.uint8) for _ in range(2))
        CropSource(stored, None).write(box, found, flipped=flipped, cubic=cubic)
        CropSource(stored, whole).write(box, wanted, flipped=flipped, cubic=cubic)
        difference = apart(found, wanted)
        assert difference.max() <= (6 if cubic else 4) and difference.mean() < 1, box


def test_views_are_those_of_the_jpeg():
    textured = [
        (smooth(320, 290, seed=n) + np.random.default_rng(n).integers(-20, 20, (290, 320, 1))).astype(
            np.uint8
        )
        for n in range(6)
    ]
    images = [jpeg(pixels) for pixels in textured] + [photo(number) for number in range(6)]
    stored = [stored_decoded(data) for data in images]
    transforms = [RandomViews(simclr_views(size), seed=0) for size in (64, 160)] + [CentralCrop(128)]
    for transform, limit in zip(transforms, (8, 8, 8), strict=True):
        (one, bad), (other, bad_stored) = (filled(transform, given) for given in (images, stored))
        assert not bad and not bad_stored
        for mine, theirs in zip(one.arrays, other.arrays, strict=True):
            difference = apart(mine, theirs)
            assert difference.mean() < 1 and np.percentile(difference, 99.9) <= limit


@pytest.mark.parametrize("kind", [GREY, COLOURS, RGB])
def test_damage_is_a_bad_image(kind):
    pixels = {GREY: np.full((9, 7, 3), 5, np.uint8), COLOURS: noise(259, 257), RGB: noise(9, 7)}[kind]
    data = as_planes(pixels)
    assert Planes.of(data).kind == kind

    def reason(changed):
        reasons = set()
        for read in (decode_image, image_size, lambda data: open_image(data).decode(1)):
            with pytest.raises(BadImage) as caught:
                read(changed)
            reasons.add(str(caught.value))
        assert len(reasons) == 1
        return reasons.pop()

    for length in {*range(8, HEADER.size + 1), HEADER.size + 5, len(data) - 1}:
        assert reason(data[:length]) == "truncated"
    assert reason(data + b"x") == "damaged"
    for place in (8, 9, 10):
        assert reason(data[:place] + b"\x07" + data[place + 1 :]) == "damaged"
    assert reason(data[:12] + bytes(4) + data[16:]) == "damaged"
    generator = random.Random(kind)
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(generator.randint(1, 4)):
            changed[generator.randrange(HEADER.size)] = generator.randrange(256)
        try:
            opened = open_image(bytes(changed))
            assert opened.decode(1).shape[1:3] == (opened.height, opened.width)
        except BadImage as error:
            assert 0 < len(str(error)) < 80


def test_the_limit_of_pixels_holds():
    data = as_planes(noise(20, 20))
    set_max_pixels(399)
    try:
        for read in (decode_image, open_image):
            with pytest.raises(BadImage, match="too large: 20x20 pixels"):
                read(data)
    finally:
        set_max_pixels(None)


def test_kept_in_memory_they_take_what_they_take_on_disk():
    data = as_planes(noise(300, 260))
    kept = KeptImages(len(data))
    first = kept.pixels(0, memoryview(data))
    assert first == data and kept.pixels(0, b"not looked at") is first
    other = as_planes(noise(300, 260, seed=1))
    assert kept.pixels(1, other) is other  # there is no room


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for number in range(24):
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(smooth(320 + number, 280, seed=number)))
    (folder / "a" / "bad.jpg").write_bytes(b"nothing")
    return folder


def test_an_import_writes_shards_that_are_read_like_others(photos, tmp_path, capsys):
    plain, stored = tmp_path / "plain", tmp_path / "stored"
    for dest, options in ((plain, []), (stored, ["--decoded"])):
        command = ["import", str(photos), str(dest), "--group-mib", "1", "--max-set-aside", "0.1", *options]
        assert run_command(lambda: commands.main(command)) == 0  # noqa: B023
    assert "stored decoded" in capsys.readouterr().out
    assert json.loads((stored / "_import.json").read_text())["decoded"] is True
    tables = [pq.read_table(dest / "shard-00000.parquet").to_pylist() for dest in (plain, stored)]
    assert [row["image"]["path"] for row in tables[0]] == [row["image"]["path"] for row in tables[1]]
    assert [row["label"] for row in tables[0]] == [row["label"] for row in tables[1]]
    report = check(str(stored))
    assert report["formats"] == {"decoded": 24} and report["bad"] == 0
    assert (
        report["row_groups"]["image_bytes"]["max"] <= 2**20 + 1000
    )  # a row group holds no more than was asked for

    def batches(url):
        shards = Shards(load_manifest(str(url), columns=["label"]), image_column="image", columns=["label"])
        order = Order(
            shards.manifest.rows_of_group, batch_size_global=8, num_streams=2, window_rows=16, seed=1
        )
        transform = RandomViews(simclr_views(64), seed=0)
        with Loader(order, shards, transform, rank=0, world_size=1) as loader:
            return [next(loader) for _ in range(6)]

    manifest = load_manifest(str(stored), columns=["label"])
    rows = list(read_in_sequence(Shards(manifest, image_column="image", columns=["label"])))
    assert all(isinstance(image, memoryview) for piece in rows for image in piece.images)
    first = {(label, len(batch.row_ids)) for batch in batches(stored) for label in batch.columns["label"]}
    assert first == {("a", 8), ("b", 8)}


def test_an_import_scales_before_it_stores(photos, tmp_path):
    options = ImportOptions(short_side=64, decoded_form=True)
    import_images(str(photos), str(tmp_path / "out"), options, show_progress=False, max_set_aside=0.1)
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert len(rows) == 24
    for row in rows:
        width, height = image_size(row["image"]["bytes"])
        assert height == 64 and width == round(
            (320 + int(row["image"]["path"].split("/")[-1][:-4])) * 64 / 280
        )
        assert image_format(row["image"]["bytes"]) == "decoded" and row["image"]["path"].endswith(".jpg")
        source = Image.open(photos / row["image"]["path"]).resize((width, height), Image.Resampling.LANCZOS)
        assert apart(decode_image(row["image"]["bytes"]), source).max() <= 4


def test_fixing_stores_good_images_decoded_and_leaves_the_rest(tmp_path, capsys):
    images = [photo(number) for number in range(20)]
    images[3], images[7] = None, b"nothing"
    images[11] = encoded(Image.fromarray(noise(30, 30)).convert("RGBA"), "PNG")
    url = write_shards(tmp_path / "source", images, label=list(range(20)))
    summary = regroup(url, str(tmp_path / "fixed"), decoded_form=True)
    assert summary["rows_written"] == 20
    rows = pq.read_table(tmp_path / "fixed").to_pylist()
    assert [row["label"] for row in rows] == list(range(20))
    for number, (row, data) in enumerate(zip(rows, images, strict=True)):
        found = row["image"] and row["image"]["bytes"]
        if number in (3, 7, 11):
            assert found == data
        else:
            np.testing.assert_array_equal(decode_image(found), decode_image(data))
    again = regroup(str(tmp_path / "fixed"), str(tmp_path / "again"), decoded_form=True)
    assert again["bytes"] == summary["bytes"]
    with pytest.raises(UserError, match="--decoded need --fix"):
        commands.main(["check", url, "--decoded"])


def test_a_pillow_image_of_it_can_be_saved():
    pixels = noise(20, 10)
    buffer = io.BytesIO()
    decode_whole(as_planes(pixels)).image.save(buffer, "PNG")
    np.testing.assert_array_equal(np.asarray(Image.open(buffer)), pixels)


@pytest.mark.slow
def test_pretraining_and_embedding_see_the_same_as_with_the_encoded_images(tmp_path):
    plain = write_shards(tmp_path / "plain", [photo(number) for number in range(48)], label=["a", "b"] * 24)
    stored = str(tmp_path / "stored")
    assert regroup(plain, stored, decoded_form=True)["rows_written"] == 48
    # the same row groups, so that the order is the same; images as small as these come back exactly
    images = [row["image"]["bytes"] for row in pq.read_table(stored).to_pylist()]
    assert {image_format(data) for data in images} == {"decoded"}
    stored = write_shards(tmp_path / "regrouped", images, label=["a", "b"] * 24)
    traces = []
    for url in (plain, stored):
        out = tmp_path / f"out-{len(traces)}"
        assert run_command(lambda: pretrain(arguments(url, out, steps=3, workers=0))) == 0  # noqa: B023
        traces.append(trace(out))
        encoder, features = str(tmp_path / "out-0" / "encoder"), str(tmp_path / f"features-{len(traces)}")
        assert run_command(lambda: pretrain(["embed", encoder, url, features])) == 0  # noqa: B023
    assert len(traces[0]) == 3 and traces[0] == traces[1]
    one, other = (
        [
            row["features"]
            for path in sorted((tmp_path / f"features-{n}").glob("*.parquet"))
            for row in pq.read_table(path).to_pylist()
        ]
        for n in (1, 2)
    )
    assert len(one) == 48
    np.testing.assert_array_equal(one, other)
