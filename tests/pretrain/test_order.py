"""The order is checked on grids of worlds, without processes and without files."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import UserError
from pretrain.data.hashing import hash64, permutation, uniform
from pretrain.data.reading.mixing import Mixture
from pretrain.data.reading.order import Order, default_num_streams


def make_order(groups, batch, streams, window=64, seed=3):
    return Order(
        np.array(groups), batch_size_global=batch, num_streams=streams, window_rows=window, seed=seed
    )


worlds = st.tuples(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.sampled_from([1, 2, 3, 4, 6, 8]),
    st.integers(1, 5),
    st.sampled_from([1, 7, 64, 100_000]),
    st.integers(0, 2**63 - 1),
    st.integers(0, 5),
).filter(lambda world: sum(world[0]) >= world[1] * world[2])


@given(worlds)
@settings(max_examples=200, deadline=None)
def test_every_row_once_an_epoch_and_equal_batches_for_every_number_of_ranks(world):
    groups, streams, rows_per_stream_and_step, window, seed, epoch = world
    batch = streams * rows_per_stream_and_step
    order = make_order(groups, batch, streams, window, seed)
    whole = order.epoch_batches(epoch)

    seen = whole.ravel()
    assert len(np.unique(seen)) == len(seen) == order.samples_per_epoch
    assert seen.min() >= 0 and seen.max() < sum(groups)
    assert sum(groups) - len(seen) < batch  # only less than one batch is dropped

    for world_size in (n for n in (1, 2, 3, 4, 6, 8) if streams % n == 0):
        by_rank = [
            np.concatenate(
                [
                    order.row_ids(epoch, stream).reshape(order.steps_per_epoch, -1)
                    for stream in order.streams_of_rank(rank, world_size)
                ],
                axis=1,
            )
            for rank in range(world_size)
        ]
        assert len({rows.shape for rows in by_rank}) == 1  # equal steps and rows on every rank
        np.testing.assert_array_equal(np.concatenate(by_rank, axis=1), whole)


@given(worlds)
@settings(max_examples=100, deadline=None)
def test_a_row_group_is_read_by_one_stream_but_for_the_cuts(world):
    groups, streams, rows_per_stream_and_step, window, seed, epoch = world
    order = make_order(groups, streams * rows_per_stream_and_step, streams, window, seed)
    users = {}
    for stream in range(streams):
        for segment in order.segments(epoch, stream):
            users.setdefault(segment.group, set()).add(stream)
    shared = sum(len(streams_) - 1 for streams_ in users.values())
    assert shared <= streams - 1  # each of the cuts splits at most one group further


@given(worlds, st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_starting_inside_a_stream_gives_the_rest_of_it(world, start):
    groups, streams, rows_per_stream_and_step, window, seed, epoch = world
    order = make_order(groups, streams * rows_per_stream_and_step, streams, window, seed)
    start %= order.rows_per_stream

    def rows(segments):
        return [(s.group, row) for s in segments for row in range(s.start, s.stop)]

    for stream in range(streams):
        assert rows(order.segments(epoch, stream, start)) == rows(order.segments(epoch, stream))[start:]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(0, 2**63 - 1), st.data())
@settings(max_examples=100, deadline=None)
def test_in_the_place_of_a_row_every_other_is_tried_once(groups, seed, data):
    order = make_order(groups, 1, 1, seed=seed)
    row = data.draw(st.integers(0, sum(groups) - 1))
    starts = np.concatenate([[0], np.cumsum(groups)])
    tried = [starts[s.group] + s.start for s in order.stand_ins(row, 3)]
    assert sorted(tried) == [other for other in range(sum(groups)) if other != row]
    # neither windows nor streams have a say
    other_world = make_order(groups, 1, 1, window=3, seed=seed)
    assert [starts[s.group] + s.start for s in other_world.stand_ins(row, 3)] == tried
    assert all(s.stop == s.start + 1 and s.pass_number == 3 for s in order.stand_ins(row, 3))


def test_stand_ins_differ_between_rows_and_epochs():
    order = make_order([100] * 10, 10, 10)
    first = {
        (row, number): next(iter(order.stand_ins(row, number))) for row in range(100) for number in range(2)
    }
    assert len({(s.group, s.start) for s in first.values()}) > 150


def test_rows_stay_inside_their_window_and_are_shuffled_there():
    order = make_order([1000], batch=100, streams=2, window=200)
    plain = np.concatenate([np.arange(s.start, s.stop) for s in order.segments(0, 0)])
    taken = order.row_ids(0, 0)
    bounds = order.window_bounds(0)
    assert bounds[1] == 50 and bounds[2] - bounds[1] == 100  # stream 0 of 2 starts with half a window
    for start, stop in itertools.pairwise(bounds):
        assert sorted(taken[start:stop]) == sorted(plain[start:stop])
        assert not np.array_equal(taken[start:stop], plain[start:stop])


def test_epochs_and_seeds_give_other_orders():
    first = make_order([10] * 40, 20, 4).epoch_batches(0)
    assert not np.array_equal(first, make_order([10] * 40, 20, 4).epoch_batches(1))
    assert not np.array_equal(first, make_order([10] * 40, 20, 4, seed=4).epoch_batches(0))
    np.testing.assert_array_equal(first, make_order([10] * 40, 20, 4).epoch_batches(0))


def test_the_order_of_a_release_is_the_order_of_the_next():
    """A run must continue after an upgrade: these numbers may never change."""
    assert hash64(1, 2, 3) == 5246500226706903259
    assert permutation(8, 5, 6).tolist() == [4, 5, 0, 1, 2, 7, 6, 3]
    order = make_order([5, 7, 3, 9], batch=8, streams=4, window=16, seed=11)
    assert order.epoch_batches(2)[1].tolist() == [18, 16, 2, 23, 4, 5, 6, 9]


def test_hashes_look_uniform_and_independent():
    samples, views = np.arange(20_000), np.arange(4)[:, None]
    values = uniform(0, 7, samples, views)
    assert values.min() >= 0 and values.max() < 1
    histogram = np.histogram(values, bins=20, range=(0, 1))[0]
    expected = values.size / 20
    assert (
        (histogram - expected) ** 2 / expected
    ).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    correlation = np.corrcoef(values)
    assert np.abs(correlation - np.eye(4)).max() < 0.03


def test_position_is_one_integer():
    order = make_order([10] * 10, batch=16, streams=4)
    assert order.steps_per_epoch == 6
    assert order.epoch_and_step(0) == (0, 0)
    assert order.epoch_and_step(96) == (1, 0)
    assert order.epoch_and_step(96 + 32) == (1, 2)
    with pytest.raises(UserError, match="not between two batches of 16"):
        order.epoch_and_step(20)


def test_impossible_worlds_are_explained():
    with pytest.raises(UserError, match=r"batch_size_global=128 is larger than the data \(100 rows\)"):
        make_order([100], 128, 4)
    with pytest.raises(UserError, match=r"batch_size_global=50 is not divisible by data\.num_streams=4"):
        make_order([100], 50, 4)
    with pytest.raises(UserError, match=r"3 workers do not divide the 4 streams.*1, 2, 4"):
        make_order([100], 48, 4).streams_of_rank(0, 3)


@pytest.mark.parametrize(
    ("batch", "streams"), [(1, 1), (96, 48), (100, 50), (256, 64), (1024, 64), (127, 1)]
)
def test_streams_are_chosen_to_divide_the_batch(batch, streams):
    assert default_num_streams(batch) == streams


mixtures = st.lists(
    st.tuples(
        st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from([0.25, 0.4, 1.0, 1.7, 2.0, 3.0])
    ),
    min_size=1,
    max_size=3,
)


@given(mixtures, st.integers(0, 2**40))
@settings(max_examples=100, deadline=None)
def test_rows_of_mixed_data_sets_come_as_often_as_their_weights_say(sources, seed):
    groups = np.array([rows for source, _ in sources for rows in source], dtype=np.int64)
    source_of_group = np.repeat(np.arange(len(sources)), [len(source) for source, _ in sources])
    weights = [weight for _, weight in sources]
    num_epochs = 20
    mixture = Mixture(groups, source_of_group=source_of_group, weights=weights, seed=seed)
    first_row = np.concatenate([[0], np.cumsum(groups)])
    counts = np.zeros(groups.sum(), dtype=int)
    seen = set()
    for epoch in range(num_epochs):
        pieces = mixture.pieces(epoch)
        assert (pieces.stops - pieces.starts).sum() == mixture.num_rows
        for group, start, stop, number in zip(
            pieces.groups, pieces.starts, pieces.stops, pieces.passes, strict=True
        ):
            assert 0 <= start < stop <= groups[group]
            counts[first_row[group] + start : first_row[group] + stop] += 1
            visits = {(group, row, number) for row in range(start, stop)}
            assert not visits & seen  # no row comes twice in a pass, so none is drawn the same views twice
            seen |= visits
    for source, weight in enumerate(weights):
        rows = np.concatenate(
            [counts[first_row[g] : first_row[g + 1]] for g in np.flatnonzero(source_of_group == source)]
        )
        assert rows.max() - rows.min() <= 1  # no row comes twice before all others came once
        assert rows.sum() == num_epochs * max(1, round(weight * len(rows)))


def test_weights_of_one_change_nothing():
    groups = [5, 7, 3, 9, 4, 4]
    options = {"batch_size_global": 8, "num_streams": 4, "window_rows": 16, "seed": 11}
    plain = Order(np.array(groups), **options)
    mixed = Order(
        np.array(groups), **options, source_of_group=np.array([0, 0, 1, 1, 1, 2]), weights=[1, 1, 1]
    )
    for epoch in range(3):
        np.testing.assert_array_equal(plain.epoch_batches(epoch), mixed.epoch_batches(epoch))


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, float("nan")], [1.0, float("inf")]]
)
def test_weights_that_do_not_fit(weights):
    with pytest.raises(UserError, match="weight"):
        Mixture(np.array([3, 4]), source_of_group=np.array([0, 1]), weights=weights)
