"""Stored features: each row meets its own, however it is read; what does not fit is refused by name."""

import itertools
import json
import shutil
import uuid
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster import storage
from cluster.errors import UserError
from pretrain.data.reading import chunks
from pretrain.data.reading.feature_description import describe_features
from pretrain.data.reading.feature_statistics import Moments, principal
from pretrain.data.reading.kept import KeptImages
from pretrain.data.reading.loader import Loader
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.order import Order
from pretrain.data.reading.shards import Shards
from pretrain.data.reading.stored_features import NO_FEATURES, StoredFeatures, with_features
from pretrain.data.views.random_views import CentralCrop
from tests.pretrain.features import CELLS, CHANNELS, DIM, SIDE, features_of, maps_of, write_features
from tests.pretrain.shards import encoded, number_of, write_shards

ROWS, BATCH = 130, 12
BAD = {3: b"", 21: b"not an image at all" * 10, 50: None, 51: None, 99: bytes(500)}
WITHOUT = 77  # can be decoded, and has no features all the same


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    images = [BAD.get(number, encoded(number)) for number in range(ROWS)]
    return write_shards(
        tmp_path_factory.mktemp("data"), images, label=[str(number) for number in range(ROWS)]
    )


@pytest.fixture(scope="module")
def stored(data, tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features"), data, without=[WITHOUT])


@pytest.fixture
def copy(stored, tmp_path):
    shutil.copytree(stored, tmp_path / "copy")
    return tmp_path / "copy"


def shards_of(*urls):
    return Shards(load_manifest(list(urls), columns=["label"]), image_column="image", columns=["label"])


def source_of(shards, url, names=("features", "maps")):
    return with_features(shards, StoredFeatures(url, shards.manifest), names)


def order_of(shards, *, streams=6, **more):
    return Order(
        shards.manifest.rows_of_group,
        batch_size_global=BATCH,
        num_streams=streams,
        window_rows=36,
        seed=5,
        **more,
    )


def read(order, source, num_batches, *, rank=0, world_size=1, samples_seen=0, transform=None, **options):
    with Loader(
        order, source, transform or CentralCrop(SIDE),
        rank=rank, world_size=world_size, samples_seen=samples_seen, decode_threads=2, **options,
    ) as loader:  # fmt: skip
        return list(itertools.islice(loader, num_batches))


def numbers(batch):
    return [number_of(pixels) for pixels in batch.arrays[0]]


def content(batches):
    """All that is in batches, for comparison."""
    return [
        (batch.row_ids.tolist(), numbers(batch), np.stack(batch.columns["features"]).tobytes(),
         np.stack(batch.columns["maps"]).tobytes(), batch.columns["label"],
         sorted((bad.row_id, bad.reason) for bad in batch.bad_rows))
        for batch in batches
    ]  # fmt: skip


def check_rows(batch):
    for number, features, maps in zip(
        numbers(batch), batch.columns["features"], batch.columns["maps"], strict=True
    ):
        assert features.dtype == maps.dtype == np.float16
        np.testing.assert_array_equal(features, features_of(number))
        np.testing.assert_array_equal(maps, maps_of(number))
        assert features.base is None and maps.base is None  # nothing else stays in memory with them


@pytest.mark.parametrize("streams", [1, 2, 4, 6, 12])
def test_each_image_has_its_own_features_on_any_number_of_ranks(data, stored, streams):
    shards = shards_of(data)
    order, source = order_of(shards, streams=streams), source_of(shards, stored)
    whole = read(order, source, 25)
    for batch in whole:
        check_rows(batch)
        assert len(batch.columns["features"]) == BATCH
    wanted = np.concatenate([order.epoch_batches(0), order.epoch_batches(1), order.epoch_batches(2)])[:25]
    np.testing.assert_array_equal([batch.row_ids for batch in whole], wanted)
    for world_size in (size for size in (2, 3, 6) if streams % size == 0):
        ranks = [read(order, source, 12, rank=rank, world_size=world_size) for rank in range(world_size)]
        for step, batch in enumerate(whole[:12]):
            together = [row for rank in ranks for row in rank[step].columns["features"]]
            np.testing.assert_array_equal(together, batch.columns["features"])


@pytest.mark.parametrize("start", [1, 4, 9, 10, 17])
def test_from_any_position_the_rest(data, stored, start):
    shards = shards_of(data)
    order, source = order_of(shards), source_of(shards, stored)
    whole, rest = read(order, source, 24), read(order, source, 24 - start, samples_seen=start * BATCH)
    assert content(whole[start:]) == content(rest)


def test_images_are_those_of_a_run_without_features(data, tmp_path):
    shards, url = shards_of(data), write_features(tmp_path, data)
    order = order_of(shards)
    plain, more = read(order, shards, 24), read(order, source_of(shards, url), 24)
    for one, other in zip(plain, more, strict=True):
        assert numbers(one) == numbers(other) and one.columns["label"] == other.columns["label"]
        assert {bad.row_id: bad.reason for bad in one.bad_rows} == {
            bad.row_id: bad.reason for bad in other.bad_rows
        }


def test_a_row_without_features_is_bad_and_its_neighbour_brings_its_own(data, stored):
    shards = shards_of(data)
    order, source = order_of(shards), source_of(shards, stored)
    found = {}
    for batch in read(order, source, order.steps_per_epoch):
        check_rows(batch)
        assert WITHOUT not in numbers(batch) and not set(BAD) & set(numbers(batch))
        found |= {bad.row_id: bad.reason for bad in batch.bad_rows}
    seen = set(order.epoch_batches(0).ravel().tolist())
    assert found.keys() == (BAD.keys() | {WITHOUT}) & seen
    assert WITHOUT in seen and found[WITHOUT] == NO_FEATURES
    assert all(
        reason != NO_FEATURES for row_id, reason in found.items() if row_id != WITHOUT
    )  # but why they are bad


def test_kept_images_change_nothing(data, stored):
    shards = shards_of(data)
    order, source = order_of(shards), source_of(shards, stored)
    assert content(read(order, source, 24)) == content(read(order, source, 24, kept=KeptImages(2**20)))


def test_a_store_gives_what_the_disk_gives(data, stored, s3_server):
    shards, url = shards_of(data), f"{s3_server.url}/{uuid.uuid4().hex}"
    for folder, target in ((data, f"{url}/data"), (stored, f"{url}/features")):
        for path in Path(folder).iterdir():
            storage.upload(path, f"{target}/{path.name}")
    order = order_of(shards)
    local = content(read(order, source_of(shards, stored), 25))
    far = shards_of(f"{url}/data")
    assert far.manifest.fingerprint == shards.manifest.fingerprint
    assert (
        content(read(order, source_of(far, f"{url}/features"), 25, prefetch_bytes=20_000, read_threads=3))
        == local
    )
    assert content(read(order, source_of(shards, f"{url}/features"), 25)) == local
    assert describe_features(f"{url}/features").statistics["mean"].shape == (DIM,)


def test_large_row_groups_lie_in_several_parts(tmp_path, monkeypatch):
    data = write_shards(
        tmp_path / "data", [encoded(number) for number in range(700)],
        rows_per_group=500, rows_per_file=1000, label=["" for _ in range(700)],
    )  # fmt: skip
    stored = write_features(tmp_path / "features", data, rows_per_part=300)
    rows_of_groups = [
        [
            pq.ParquetFile(path).metadata.row_group(group).num_rows
            for group in range(pq.read_metadata(path).num_row_groups)
        ]
        for path in sorted(Path(stored).glob("*.parquet"))
    ]
    assert rows_of_groups == [[128, 128, 44], [128, 72], [128, 72]]
    shards = shards_of(data)
    order, source = order_of(shards, streams=3), source_of(shards, stored)
    whole = read(order, source, 70)
    for batch in whole:
        check_rows(batch)
    monkeypatch.setattr(chunks, "WHOLE_GROUP_BYTES", 0)  # page by page
    assert content(read(order, source_of(shards, stored), 70)) == content(whole)


def test_mixed_data_sets_by_weights(tmp_path):
    first, second = (
        write_shards(tmp_path / name, [encoded(n) for n in range(*span)], label=["" for _ in range(*span)])
        for name, span in (("a", (0, 40)), ("b", (40, 70)))
    )
    stored = write_features(tmp_path / "features", [first, second])
    shards = shards_of(first, second)
    order = order_of(shards, source_of_group=shards.manifest.source_of_group, weights=[0.5, 2.0])
    for batch in read(order, source_of(shards, stored), 20):
        check_rows(batch)
    with pytest.raises(
        UserError, match=r"same data sets in another order \(.*/a, .*/b\); name them in this order"
    ):
        StoredFeatures(stored, load_manifest([second, first]))


# -- what does not fit --------------------------------------------------------------------------------------


def test_features_of_other_data_are_refused(data, stored, tmp_path):
    fewer = write_shards(tmp_path / "fewer", [encoded(number) for number in range(100)])
    with pytest.raises(
        UserError,
        match=r"holds the features of 130 rows of .*; .* the data has 100 rows|the data has 100 rows",
    ):
        StoredFeatures(stored, load_manifest(fewer))
    others = write_shards(
        tmp_path / "others", [encoded(number + 7) for number in range(ROWS)], rows_per_group=9
    )
    with pytest.raises(
        UserError, match=r"holds the features of other data or of its rows in another order \(.*fingerprint"
    ):
        StoredFeatures(stored, load_manifest(others))


def test_rows_that_changed_places_within_a_file_are_found_while_reading(tmp_path):
    images = [encoded(number) for number in range(30)]
    data = write_shards(tmp_path / "data", images, rows_per_file=30, label=[""] * 30)
    stored = write_features(tmp_path / "features", data)
    again = write_shards(
        tmp_path / "again", [*images[:20], *images[:19:-1]], rows_per_file=30, label=[""] * 30
    )
    shards = shards_of(again)
    features = StoredFeatures(
        stored, load_manifest(data)
    )  # as if names, sizes and numbers of rows were the same
    with pytest.raises(
        UserError, match=r"shard-00000\.parquet: row group \d, row \d holds another image than the one"
    ):
        read(order_of(shards), with_features(shards, features), 3)


def test_parts_that_are_missing_or_cut_are_named(data, copy):
    manifest = load_manifest(data)
    part = sorted(copy.glob("*.parquet"))[2]
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        UserError, match=rf"{part.name} is truncated: it has [\d,]+ bytes, [\d,]+ were written"
    ):
        StoredFeatures(str(copy), manifest)
    part.unlink()
    with pytest.raises(UserError, match=rf"{part.name} is missing; run embed again"):
        StoredFeatures(str(copy), manifest)


def test_a_folder_that_is_not_finished_or_none_is_refused(data, copy, tmp_path):
    manifest = load_manifest(data)
    described = json.loads((copy / "features.json").read_text())
    (copy / "features.json").write_text(json.dumps(described | {"format_version": 99}))
    with pytest.raises(UserError, match=r"has format version 99, this program reads version 1"):
        StoredFeatures(str(copy), manifest)
    (copy / "features.json").write_text("{")
    with pytest.raises(UserError, match=r"features\.json is damaged"):
        StoredFeatures(str(copy), manifest)
    (copy / "features.json").unlink()
    with pytest.raises(
        UserError, match=r"the features are not finished, features\.json is missing; run embed again"
    ):
        StoredFeatures(str(copy), manifest)
    with pytest.raises(
        UserError, match=r"is not a folder of features.*\(there: nothing\).*python -m pretrain embed"
    ):
        StoredFeatures(str(tmp_path / "nowhere"), manifest)


def test_other_dimensions_and_missing_maps_are_refused(data, copy, tmp_path):
    shards = shards_of(data)
    with pytest.raises(UserError, match=r"holds features of 5 dimensions, 1280 are needed"):
        StoredFeatures(str(copy), shards.manifest, dim=1280)
    described = json.loads((copy / "features.json").read_text())
    (copy / "features.json").write_text(json.dumps(described | {"dim": 7}))
    with pytest.raises(
        UserError,
        match=r"part-00000000-0000\.parquet: the column 'features' is fixed_size_list.*\[5\].*\[7\]",
    ):
        source_of(shards, str(copy))
    plain = write_features(tmp_path / "plain", data, maps=False)
    assert describe_features(plain).maps is None
    with pytest.raises(UserError, match=r"holds no maps; make them with: .*--maps"):
        source_of(shards, plain)


def test_what_a_folder_says_of_itself(data, stored):
    described = describe_features(stored)
    assert (described.dim, described.rows) == (DIM, ROWS)
    assert (described.maps.channels, described.maps.cells) == (CHANNELS, CELLS)
    assert described.content["good_rows"] == ROWS - len(BAD) - 1
    assert described.teacher["name"] == "the colour's number"
    rows = np.array([features_of(n) for n in range(ROWS) if n not in BAD and n != WITHOUT], np.float64)
    statistics = described.statistics
    np.testing.assert_allclose(statistics["mean"], rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(statistics["deviation"], rows.std(0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(statistics["variance"], [rows.var(0).sum()], rtol=1e-6)
    np.testing.assert_allclose(statistics["deviations"][0], rows.std(0).max(), rtol=1e-6)
    np.testing.assert_allclose(np.abs(statistics["eigenvectors"][:, 0]), np.eye(DIM)[0], atol=1e-6)


def test_moments_of_pieces_are_those_of_the_whole():
    rows = np.random.default_rng(0).normal(1000, [[1, 2, 3, 0.01]], (500, 4))
    moments = Moments(4)
    for piece in np.array_split(rows, [3, 3, 90, 400]):
        moments.add(piece)
    mean, covariance = moments.mean_and_covariance()
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(rows.T, bias=True), rtol=1e-9, atol=1e-12)
    vectors, values = principal(covariance, 3)
    np.testing.assert_allclose(vectors.T @ covariance @ vectors, np.diag(values), atol=1e-9)
    assert (np.diff(values) < 0).all() and (vectors[np.abs(vectors).argmax(0), range(3)] > 0).all()
