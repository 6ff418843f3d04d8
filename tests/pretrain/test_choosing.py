"""Rows that are left out or come several times: which ones,
and that readers on any number of ranks see these and no others.
"""

import numpy as np
import pytest

from pretrain.data.reading.choosing import balanced_rows, fraction_of_rows, rows_of_each_class
from pretrain.data.reading.columns import column_by_file
from pretrain.data.reading.in_sequence import batches_in_sequence
from pretrain.data.reading.labels import ClassNames, class_counts, label_codes
from pretrain.data.reading.loader import Loader
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.order import Order
from pretrain.data.reading.shards import RowLocation, Shards
from tests.pretrain.shards import write_shards

CLASSES = np.repeat([0, 1, 2, 3], [500, 300, 190, 10])


class Names:
    """Host transform that keeps the text in the image's bytes."""

    parameters = geometry_VB5 = None

    def begin(self, passes, row_ids):
        filling = Names()
        filling.arrays = [np.empty(len(row_ids), dtype=object)]
        return filling

    def fill(self, index, data):
        self.arrays[0][index] = bytes(data).decode()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """200 rows in five files of row groups of 7; the image of row n is the text n."""
    numbers = range(200)
    folder = write_shards(
        tmp_path_factory.mktemp("rows"),
        [str(number).encode() for number in numbers],
        label=[f"c{number % 3}" for number in numbers],
        labels=[[f"c{number % 3}"] * (number % 2) for number in numbers],
    )
    return load_manifest(folder, columns=["image", "label", "labels"])


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_a_small_share_is_part_of_every_larger_one(classes):
    former = np.zeros(0, np.int64)
    for share in (0.001, 0.01, 0.05, 0.1, 0.37, 1.0):
        rows = fraction_of_rows(1000, share, seed=3, classes_N=classes)
        assert set(former) <= set(rows) and (np.diff(rows) > 0).all()
        if classes is None:
            assert len(rows) == max(1, round(share * 1000))
        else:  # equal shares of each class, and at least one row
            assert np.bincount(CLASSES[rows]).tolist() == [
                max(1, round(share * n)) for n in (500, 300, 190, 10)
            ]
        assert (rows == fraction_of_rows(1000, share, seed=3, classes_N=classes)).all()
        former = rows
    assert (former == np.arange(1000)).all()
    some, others = (set(fraction_of_rows(1000, 0.1, seed=seed, classes_N=classes)) for seed in (1, 2))
    assert 2 < len(some & others) < 30  # of 100, as chance has it


def test_so_many_of_each_class():
    five, fifty = (rows_of_each_class(CLASSES, num, seed=0) for num in (5, 50))
    assert np.bincount(CLASSES[five]).tolist() == [5, 5, 5, 5]
    assert np.bincount(CLASSES[fifty]).tolist() == [50, 50, 50, 10]
    assert set(five) <= set(fifty)


def test_balanced_rows_show_each_class_equally_often():
    chosen = fraction_of_rows(1000, 0.5, seed=1, classes_N=CLASSES)
    rows = balanced_rows(chosen, CLASSES[chosen], seed=1)
    assert np.bincount(CLASSES[rows]).tolist() == [250] * 4 and (np.diff(rows) >= 0).all()
    assert set(rows) == set(chosen)
    for label in range(4):
        times = np.bincount(rows)[[row for row in chosen if CLASSES[row] == label]]
        assert times.max() - times.min() <= 1


@pytest.mark.parametrize("kind", ["few", "some", "repeated"])
def test_every_rank_count_reads_the_chosen_rows_once(manifest, kind):
    rows = {
        "few": np.array([3, 77, 78, 120, 121, 122, 155, 199]),
        "some": fraction_of_rows(200, 0.4, seed=5),
        "repeated": np.sort(np.concatenate([fraction_of_rows(200, 0.2, seed=5)] * 2 + [np.array([9])])),
    }[kind]
    chosen = manifest.chosen(rows)
    assert chosen.num_rows == len(rows) and chosen.fingerprint != manifest.fingerprint
    shards = Shards(chosen, image_column="image", columns=["label"])
    order = Order(chosen.rows_of_group, batch_size_global=8, num_streams=4, window_rows=16, seed=2)
    expected = [[str(rows[row_id]) for row_id in batch] for batch in order.epoch_batches(0)]
    for world_size in (1, 2, 4):
        seen = [[] for _ in expected]
        for rank in range(world_size):
            with Loader(
                order, shards, Names(), rank=rank, world_size=world_size, decode_threads=2
            ) as loader:
                for step in range(order.steps_per_epoch):
                    batch = next(loader)
                    assert batch.columns["label"] == [f"c{int(text) % 3}" for text in batch.arrays[0]]
                    seen[step].extend(batch.arrays[0])
        assert seen == expected
    counts = np.bincount(np.concatenate(expected).astype(int), minlength=200)
    assert (
        counts.max() <= np.bincount(rows).max() and len(rows) - counts.sum() < 8
    )  # but for the dropped tail

    in_sequence = [list(batch.arrays[0]) for batch in batches_in_sequence(shards, Names(), batch_size=9)]
    assert [text for batch in in_sequence for text in batch] == list(map(str, rows))
    place = RowLocation.parse(str(shards.location(len(rows) - 1)))
    within = rows[-1] % 40
    assert place.file.endswith(f"shard-{rows[-1] // 40:05d}.parquet")
    assert (place.row_group, place.row) == (within // 7, within % 7)


def test_columns_are_those_of_the_chosen_rows(manifest):
    rows = np.array([1, 2, 2, 41, 100, 199])
    chosen = manifest.chosen(rows)
    values = [value for _, part in column_by_file(chosen, "label") for value in part.to_pylist()]
    assert values == [f"c{row % 3}" for row in rows]
    assert label_codes(manifest, "label").tolist() == [row % 3 for row in range(200)]
    classes = ClassNames(("c0", "c1", "c2", "c3"), list("0123"))
    assert class_counts(chosen, "label", classes).tolist() == np.bincount(rows % 3, minlength=4).tolist()
    odd = rows[rows % 2 == 1]
    assert class_counts(chosen, "labels", classes).tolist() == np.bincount(odd % 3, minlength=4).tolist()


def test_a_sample_of_chosen_rows_holds_chosen_rows(manifest):
    rows = fraction_of_rows(200, 0.3, seed=0)
    sample = manifest.chosen(rows).sample(20)
    assert 20 <= sample.num_rows < 60
    values = [value for _, part in column_by_file(sample, "image") for value in part.to_pylist()]
    texts = [int(value["bytes"] if isinstance(value, dict) else value) for value in values]
    assert len(texts) == sample.num_rows and set(texts) <= set(rows)
