"""Reading: every row comes where the order says, on any number of ranks, threads and restarts,
and bad rows by rule.
"""

import itertools
import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest

from cluster.errors import RunStopped, UserError
from pretrain.data.reading.in_sequence import batches_in_sequence
from pretrain.data.reading.loader import Loader
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.order import Order
from pretrain.data.reading.reader import HORIZON_STEPS
from pretrain.data.reading.shards import Shards
from pretrain.data.views.random_views import CentralCrop
from tests.pretrain.shards import encoded, number_of, write_shards

ROWS, BATCH, STREAMS = 130, 12, 6


class Slow(CentralCrop):
    """Takes longer for some images than for others, so that threads finish out of order."""

    def begin(self, passes, row_ids):
        filling = super().begin(passes, row_ids)
        fill = filling.fill

        def slowly(index, data):
            time.sleep(0.002 * (row_ids[index] % 3))
            fill(index, data)

        filling.fill = slowly
        return filling


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    images = [encoded(number) for number in range(ROWS)]
    url = write_shards(
        tmp_path_factory.mktemp("rows"), images, label=[f"class {n % 3}" for n in range(ROWS)]
    )
    return Shards(load_manifest(url, columns=["image", "label"]), image_column="image", columns=["label"])


def make_order(shards, *, window=36, seed=5):
    return Order(
        shards.manifest.rows_of_group,
        batch_size_global=BATCH,
        num_streams=STREAMS,
        window_rows=window,
        seed=seed,
    )


def read(shards, order, num_batches, *, rank=0, world_size=1, samples_seen=0, transform=None, **options):
    with Loader(
        order,
        shards,
        transform or CentralCrop(6),
        rank=rank,
        world_size=world_size,
        samples_seen=samples_seen,
        **options,
    ) as loader:
        return list(itertools.islice(loader, num_batches))


def numbers(batch):
    return [number_of(pixels) for pixels in batch.arrays[0]]


@pytest.mark.parametrize("decode_threads", [1, 3])
def test_the_images_are_those_the_order_names(shards, decode_threads):
    order = make_order(shards)
    steps = order.steps_per_epoch
    batches = read(shards, order, 2 * steps + 1, decode_threads=decode_threads, transform=Slow(6))
    wanted = [*order.epoch_batches(0), *order.epoch_batches(1), order.epoch_batches(2)[0]]
    for number, (batch, row_ids) in enumerate(zip(batches, wanted, strict=True)):
        np.testing.assert_array_equal(batch.row_ids, row_ids)
        assert numbers(batch) == row_ids.tolist()
        assert batch.columns["label"] == [f"class {n % 3}" for n in row_ids]
        assert (batch.passes == number // steps).all()


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_together_read_the_same_global_batches(shards, world_size):
    order = make_order(shards)
    whole = read(shards, order, 12)
    by_rank = [read(shards, order, 12, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        assert numbers(batch) == [number for rank in by_rank for number in numbers(rank[step])]


@pytest.mark.parametrize("start", [1, 4, 9, 10, 17, 25])
def test_starting_anywhere_gives_the_rest(shards, start):
    order = make_order(shards)
    whole = read(shards, order, 30)
    rest = read(shards, order, 30 - start, samples_seen=start * BATCH, rank=1, world_size=2)
    for batch, late in zip(whole[start:], rest, strict=True):
        assert numbers(batch)[BATCH // 2 :] == numbers(late)


BAD = {
    3: (b"", "empty"),
    20: (encoded(20)[:45], None),
    21: (b"not an image at all" * 10, None),
    50: (None, "null"),
    51: (None, "null"),
    99: (bytes(500), None),
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    images = [BAD[number][0] if number in BAD else encoded(number) for number in range(ROWS)]
    url = write_shards(tmp_path_factory.mktemp("damaged"), images, label=[str(n) for n in range(ROWS)])
    return Shards(load_manifest(url, columns=["image", "label"]), image_column="image", columns=["label"])


def test_a_neighbour_takes_the_place_of_a_bad_row_and_nothing_else_changes(shards, damaged):
    order = make_order(shards)
    found = {}
    for good, batch in zip(read(shards, order, 10), read(damaged, order, 10), strict=True):
        np.testing.assert_array_equal(good.row_ids, batch.row_ids)
        found |= {bad.row_id: bad.reason for bad in batch.bad_rows}
        for row_id, number, label in zip(batch.row_ids.tolist(), numbers(batch), batch.columns["label"]):
            assert label == str(number)  # the neighbour comes with its own label
            assert (number != row_id) == (row_id in BAD)
            assert number not in BAD
    seen = set(order.epoch_batches(0).ravel().tolist())
    assert found.keys() == BAD.keys() & seen
    for row_id, reason in found.items():
        assert reason and (BAD[row_id][1] is None or BAD[row_id][1] in reason)


def test_the_same_neighbours_after_a_restart_on_other_ranks(damaged):
    order = make_order(damaged)
    whole = read(damaged, order, 20)
    for rank in range(3):
        late = read(damaged, order, 15, rank=rank, world_size=3, samples_seen=5 * BATCH)
        for batch, part in zip(whole[5:], late, strict=True):
            assert numbers(batch)[rank * 4 : rank * 4 + 4] == numbers(part)


@pytest.mark.parametrize("window", [1, STREAMS, 3 * STREAMS])
def test_small_windows_find_a_good_row_elsewhere_and_the_same_on_any_ranks(damaged, window):
    order = make_order(damaged, window=window)
    whole = read(damaged, order, 20)
    for batch in whole:
        for row_id, number, label in zip(batch.row_ids.tolist(), numbers(batch), batch.columns["label"]):
            assert number not in BAD and label == str(number)
            assert (number != row_id) == (row_id in BAD)
    for rank in range(3):
        late = read(damaged, order, 15, rank=rank, world_size=3, samples_seen=5 * BATCH, decode_threads=2)
        for batch, part in zip(whole[5:], late, strict=True):
            assert numbers(batch)[rank * 4 : rank * 4 + 4] == numbers(part)
    if window == 1:  # in another epoch another one takes its place
        assert len({n for b in whole for row, n in zip(b.row_ids.tolist(), numbers(b)) if row == 50}) == 2


def test_one_good_row_among_bad_ones_is_found(tmp_path):
    url = write_shards(tmp_path, [encoded(n) if n == 23 else b"nothing" for n in range(40)])
    shards = Shards(load_manifest(url), image_column="image")
    order = Order(shards.manifest.rows_of_group, batch_size_global=8, num_streams=8, window_rows=8, seed=0)
    assert [numbers(batch) for batch in read(shards, order, 5)] == [[23] * 8] * 5


def test_what_takes_the_place_of_a_row_is_of_its_data_set(tmp_path):
    first = write_shards(tmp_path / "a", [b"nothing"] * 39 + [encoded(1)])
    second = write_shards(tmp_path / "b", [b"nothing"] * 29 + [encoded(2)])
    shards = Shards(load_manifest([first, second]), image_column="image")
    manifest = shards.manifest
    order = Order(
        manifest.rows_of_group, batch_size_global=10, num_streams=10, window_rows=10, seed=0,
        source_of_group=manifest.source_of_group,
    )  # fmt: skip
    for batch in read(shards, order, 7):
        assert numbers(batch) == [1 if row < 40 else 2 for row in batch.row_ids.tolist()]


def test_data_without_a_good_row_stops_with_words(tmp_path):
    url = write_shards(tmp_path, [b"nothing"] * 40)
    shards = Shards(load_manifest(url), image_column="image")
    order = Order(shards.manifest.rows_of_group, batch_size_global=8, num_streams=2, window_rows=16, seed=0)
    with pytest.raises(
        RunStopped, match=r"none of 40 rows can be decoded \(first: .*not an image"
    ) as stopped:
        read(shards, order, 1)
    assert stopped.value.bad_rows


def test_a_file_that_goes_away_is_named(tmp_path):
    url = write_shards(tmp_path, [encoded(number) for number in range(40)], rows_per_file=10)
    shards = Shards(load_manifest(url), image_column="image")
    order = Order(shards.manifest.rows_of_group, batch_size_global=8, num_streams=2, window_rows=16, seed=0)
    (tmp_path / "shard-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"shard-00002.parquet: it does not exist"):
        read(shards, order, 5)


def test_plain_binary_columns_and_huge_row_groups_read_the_same(tmp_path, monkeypatch):
    images = [encoded(number) for number in range(ROWS)]
    url = write_shards(tmp_path, images, plain_binary=True, rows_per_group=1000, rows_per_file=1000)
    shards = Shards(load_manifest(url), image_column="image")
    order = make_order(shards)
    whole = [numbers(batch) for batch in read(shards, order, 10)]
    assert whole == order.epoch_batches(0).tolist()
    monkeypatch.setattr("pretrain.data.reading.chunks.WHOLE_GROUP_BYTES", 0)  # page by page
    assert [numbers(batch) for batch in read(shards, order, 10)] == whole


def test_evaluation_reads_every_good_row_once_in_order(damaged):
    good = [number for number in range(ROWS) if number not in BAD]
    for world_size in (1, 2, 4):
        seen, bad = [], {}
        for rank in range(world_size):
            for batch in batches_in_sequence(
                damaged, CentralCrop(6), batch_size=9, rank=rank, world_size=world_size, decode_threads=2
            ):
                assert len(batch.arrays[0]) == len(batch.row_ids) == len(batch.columns["label"]) <= 9
                assert numbers(batch) == batch.row_ids.tolist()
                assert batch.columns["label"] == [str(number) for number in batch.row_ids]
                seen += numbers(batch)
                bad |= {row.row_id: row.reason for row in batch.bad_rows}
        assert seen == good
        assert bad.keys() == BAD.keys()


def test_a_small_data_set_is_not_read_many_times_ahead(shards):
    class Counting:
        """The shards, and how many rows of them were asked for."""

        mean_row_bytes, num_rows = shards.mean_row_bytes, 0

        def read(self, segment, **options):
            self.num_rows += segment.stop - segment.start
            return shards.read(segment, **options)

    order = make_order(shards, window=100 * ROWS)  # a window that holds all rows a hundred times
    counting = Counting()
    with Loader(order, counting, CentralCrop(6), rank=0, world_size=1) as loader:
        next(loader)
        time.sleep(1.0)  # in which all is read that is read ahead
    # each stream goes on to the end of the pass that it is in
    assert ROWS < counting.num_rows <= (HORIZON_STEPS + 4) * BATCH + 2 * ROWS


def test_closing_early_leaves_no_thread(shards):
    before = threading.active_count()
    for _ in range(3):
        read(shards, make_order(shards), 1, prefetch_batches=1)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_closing_wakes_a_thread_that_waits_for_a_batch(shards):
    class Slow:
        mean_row_bytes = shards.mean_row_bytes

        def read(self, segment, *, stopped, **options):
            while not stopped():
                time.sleep(0.01)
            yield from ()

    loader, ended = Loader(make_order(shards), Slow(), CentralCrop(6), rank=0, world_size=1), []

    def wait():
        try:
            next(loader)
        except CancelledError as error:
            ended.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    time.sleep(0.2)
    loader.close()
    thread.join(20)
    assert not thread.is_alive() and len(ended) == 1


def test_mixed_data_sets_on_any_number_of_ranks_and_from_any_position(tmp_path):
    first = write_shards(tmp_path / "a", [encoded(number) for number in range(40)])
    second = write_shards(tmp_path / "b", [encoded(number) for number in range(40, 70)], plain_binary=True)
    shards = Shards(load_manifest([first, second]), image_column="image")
    manifest = shards.manifest
    order = Order(
        manifest.rows_of_group,
        batch_size_global=BATCH,
        num_streams=STREAMS,
        window_rows=24,
        seed=1,
        source_of_group=manifest.source_of_group,
        weights=[0.5, 2.0],
    )
    assert order.num_rows == 20 + 60 and order.steps_per_epoch == 6
    whole = read(shards, order, 6 * 20)
    counts = np.bincount(np.concatenate([numbers(batch) for batch in whole]), minlength=70)
    # of 80 rows an epoch takes 72: each data set loses its share of the tail
    assert abs(counts[:40].sum() / counts.sum() - 0.25) < 0.02
    pairs = [
        pair for batch in whole for pair in zip(batch.row_ids.tolist(), batch.passes.tolist(), strict=True)
    ]
    assert len(set(pairs)) == len(pairs)
    by_rank = [read(shards, order, 12, rank=rank, world_size=3) for rank in range(3)]
    for parts, batch in zip(zip(*by_rank, strict=True), whole[:12], strict=True):
        np.testing.assert_array_equal(np.concatenate([part.row_ids for part in parts]), batch.row_ids)
        np.testing.assert_array_equal(np.concatenate([part.passes for part in parts]), batch.passes)
    rest = read(shards, order, 3, samples_seen=8 * BATCH)
    assert [numbers(batch) for batch in rest] == [numbers(batch) for batch in whole[8:11]]
