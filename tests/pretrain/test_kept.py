"""Images kept in memory give the views that decoding each time gives."""

import itertools

import numpy as np
import pytest
import torch

from pretrain.data.images.decode import BadImage
from pretrain.data.reading.kept import KeptImages
from pretrain.data.reading.loader import Loader
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.order import Order
from pretrain.data.reading.shards import Shards
from pretrain.data.views.random_views import RandomViews
from pretrain.data.views.recipes import simclr_views
from tests.pretrain.shards import photo, write_shards
from tests.pretrain.test_pixels import numpy_file

ROWS, BATCH = 90, 12
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    images = [photo(number) for number in range(ROWS)]
    images[7], images[30] = b"nothing", None
    url = write_shards(
        tmp_path_factory.mktemp("kept"), images, label=[f"class {n % 3}" for n in range(ROWS)]
    )
    return Shards(load_manifest(url, columns=["label"]), image_column="image", columns=["label"])


def batches(source, transform, shards, num, **options):
    order = Order(
        shards.manifest.rows_of_group, batch_size_global=BATCH, num_streams=4, window_rows=40, seed=1
    )
    with Loader(order, source, transform, rank=0, world_size=1, decode_threads=2, **options) as loader:
        return list(itertools.islice(loader, num))


@pytest.mark.parametrize("limit", [0, 30 * 48 * 48 * 4, 2**30])
def test_kept_on_the_host_nothing_changes(shards, limit):
    plain = batches(shards, RandomViews(simclr_views(24), seed=0), shards, 20)
    kept = KeptImages(limit)
    again = batches(shards, RandomViews(simclr_views(24), seed=0), shards, 20, kept=kept)
    for one, other in zip(plain, again, strict=True):
        np.testing.assert_array_equal(one.row_ids, other.row_ids)
        assert one.columns == other.columns
        for mine, theirs in zip(one.arrays, other.arrays, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert {row.row_id: row.reason for row in one.bad_rows} == {
            row.row_id: row.reason for row in other.bad_rows
        }


def test_what_is_kept_is_not_decoded_again_and_does_not_pass_the_limit():
    image_bytes = 48 * 48 * 4
    kept = KeptImages(2 * image_bytes)
    first = kept.pixels(0, photo(0))
    assert isinstance(first, np.ndarray) and kept.pixels(0, b"not looked at") is first
    assert isinstance(kept.pixels(1, photo(1)), np.ndarray)
    encoded = photo(2)
    assert kept.pixels(2, encoded) is encoded
    with pytest.raises(BadImage, match="not an image"):
        KeptImages(image_bytes).pixels(3, b"nothing")


@pytest.mark.parametrize(("channels", "images"), [(1, photo), (5, None)])
def test_other_channels_go_all_the_way(channels, images, tmp_path, capsys):
    """Pretraining, the encoder folder, and a classifier, on grey images and on images of five bands."""
    import json

    from cluster.errors import run_command
    from finetune.__main__ import main as finetune_main
    from finetune.model import load_model
    from pretrain.__main__ import main

    generator = np.random.default_rng(0)
    bands = [generator.integers(0, 256, (40, 40, channels), dtype=np.uint8) for _ in range(24)]
    data = [photo(n) for n in range(24)] if images else [numpy_file(array) for array in bands]
    url = write_shards(tmp_path / "shards", data, label=[f"class {n % 2}" for n in range(24)])
    common = ["cluster.workers=0", "training.batch_size_global=8", "training.epochs=1"]
    out, tuned = tmp_path / "run", tmp_path / "tuned"
    options = [
        "configs/pretrain/small/simclr.yaml", f"data.url={url}", f"out={out}", "views.size=32",
        f"views.channels={channels}", "data.keep=host", "encoder.arguments.stem_stride=4", *common,
    ]  # fmt: skip
    assert run_command(lambda: main(options)) == 0, capsys.readouterr().err
    config = json.loads((out / "encoder" / "config.json").read_text())
    assert config["in_channels"] == channels and len(config["mean"]) == channels
    options = [
        "configs/finetune/classification.yaml", f"encoder={out / 'encoder'}", f"data.url={url}",
        f"validation_url={url}",
        f"out={tuned}", "compare=[]", *common,
    ]  # fmt: skip
    assert run_command(lambda: finetune_main(options)) == 0, capsys.readouterr().err
    image = bands[0] if channels == 5 else photo(0)
    assert load_model(str(tuned / "model")).predict(image)[0].label in ("class 0", "class 1")
