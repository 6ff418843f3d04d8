"""One row in a hundred damaged in five ways: training goes on, every bad row is listed,
and nothing else changes.
"""

import itertools
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import run_command
from pretrain.__main__ import main
from pretrain.data.reading.loader import Loader
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.order import Order
from pretrain.data.reading.shards import Shards
from pretrain.data.views.random_views import RandomViews
from pretrain.data.views.recipes import simclr_views
from tests.pretrain.shards import photo, write_shards

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "clothing_cc0" / "train"
BATCH = 32


def png_bomb():
    """20,000 x 20,000 pixels in some kilobytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(2501) * 20_000))
        + chunk(b"IEND", b"")
    )


DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "zero bytes": lambda data: bytes(len(data)),
    "text": lambda data: b"<html>404 not found</html>",
    "bomb": lambda data: png_bomb(),
    "null": lambda data: None,
}
REASONS = {
    "truncated": "truncated",
    "zero bytes": "not an image",
    "text": "not an image",
    "bomb": "too large: 20000x20000",
    "null": "null",
}


@pytest.fixture(scope="module")
def photos():
    """Real photos where they lie beside the checkout, made ones elsewhere."""
    files = sorted(PHOTOS.rglob("*.jpg"))[::2]
    images = [file.read_bytes() for file in files] or [photo(number) for number in range(640)]
    return images[: len(images) // BATCH * BATCH]  # so that an epoch drops no row


@pytest.fixture(scope="module")
def worlds(photos, tmp_path_factory):
    """(URL of the whole data, URL of the damaged data, row id -> what was done to it)."""
    generator = np.random.default_rng(0)
    chosen = sorted(generator.choice(len(photos), len(photos) // 100 + 4, replace=False).tolist())
    done = dict(zip(chosen, itertools.cycle(DAMAGES), strict=False))
    damaged = [DAMAGES[done[row]](data) if row in done else data for row, data in enumerate(photos)]
    folder = tmp_path_factory.mktemp("damage")
    return write_shards(folder / "whole", photos), write_shards(folder / "damaged", damaged), done


def test_training_finishes_and_lists_every_bad_row(worlds, tmp_path, capsys):
    _, url, done = worlds
    out = tmp_path / "run"
    options = [
        "configs/pretrain/small/simclr.yaml", f"data.url={url}", f"out={out}", "views.size=32",
        "cluster.workers=0", "encoder.arguments.stem_stride=4", f"training.batch_size_global={BATCH}",
        "training.epochs=1",
    ]  # fmt: skip
    assert run_command(lambda: main(options)) == 0, capsys.readouterr().err
    shards = Shards(load_manifest(url), image_column="image")
    listed = {}
    for line in map(json.loads, (out / "bad_rows.jsonl").read_text().splitlines()):
        listed[line["file"], line["row_group"], line["row"]] = line["reason"]
    assert len(listed) == len(done)
    for row, damage in done.items():
        place = shards.location(row)
        assert REASONS[damage] in listed[place.file, place.row_group, place.row], (damage, listed)
    assert json.loads((out / "result.json").read_text())["bad_rows"] == len(done)


def test_nothing_else_changes(worlds):
    whole_url, damaged_url, done = worlds
    batches = {}
    for name, url in (("whole", whole_url), ("damaged", damaged_url)):
        manifest = load_manifest(url)
        order = Order(
            manifest.rows_of_group, batch_size_global=BATCH, num_streams=8, window_rows=256, seed=0
        )
        transform = RandomViews(simclr_views(16), seed=0)
        with Loader(
            order, Shards(manifest, image_column="image"), transform, rank=0, world_size=1
        ) as loader:
            batches[name] = list(itertools.islice(loader, order.steps_per_epoch))
    bad = set()
    for whole, damaged in zip(batches["whole"], batches["damaged"], strict=True):
        np.testing.assert_array_equal(whole.row_ids, damaged.row_ids)
        good = [index for index, row in enumerate(whole.row_ids.tolist()) if row not in done]
        for mine, theirs in zip(whole.arrays, damaged.arrays, strict=True):
            np.testing.assert_array_equal(mine[good], theirs[good])
        bad |= {row.row_id for row in damaged.bad_rows}
        assert not whole.bad_rows
    assert bad == set(done)


@pytest.mark.parametrize("damage", ["truncated", "no parquet", "other schema"])
def test_a_bad_file_stops_the_check_before_the_run(worlds, tmp_path, capsys, damage):
    folder = tmp_path / "data"
    folder.mkdir()
    for file in Path(worlds[0]).glob("*.parquet"):
        (folder / file.name).symlink_to(file)
    bad = folder / "shard-00003.parquet"
    content = bad.read_bytes()
    bad.unlink()
    if damage == "truncated":
        bad.write_bytes(content[:-100])
    elif damage == "no parquet":
        bad.write_bytes(b"hello" * 100)
    else:
        pq.write_table(pa.table({"picture": [b"x"]}), bad)
    options = [
        "configs/pretrain/small/simclr.yaml",
        f"data.url={folder}",
        f"out={tmp_path / 'run'}",
        "--check",
    ]
    assert run_command(lambda: main(options)) == 2
    error = capsys.readouterr().err
    assert "shard-00003.parquet" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
