"""Segments of stored features: any one of any table of row groups meets its own; of a large one
only what comes next is sent for.
"""

import itertools
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.data.reading.feature_layout import layout_of
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.order import Segment
from pretrain.data.reading.shards import Shards
from pretrain.data.reading.stored_features import NO_FEATURES, StoredFeatures, with_features
from tests.pretrain.features import DIM, features_of, write_features
from tests.pretrain.shards import encoded, write_shards


def test_of_a_large_segment_only_what_comes_next_is_sent_for(tmp_path):
    data = write_shards(
        tmp_path / "data", [encoded(n) for n in range(2000)], rows_per_group=2000, rows_per_file=2000
    )
    shards = Shards(load_manifest(data), image_column="image")
    features = StoredFeatures(
        write_features(tmp_path / "features", data, rows_per_part=2000, maps=False), shards.manifest
    )
    source = with_features(shards, features)
    asked, files = [], source._files
    inner = files.read
    files.read = lambda segment, stopped: (asked.append(segment.group), inner(segment, stopped=stopped))[1]
    rows = source.read(Segment(0, 0, 2000))
    most = 2 + int(2**20 / (128 * (2 * DIM + 4)))
    assert 2 <= len(asked) <= most
    assert [row_id for piece in rows for row_id in piece.row_ids] == list(range(2000))
    assert asked == list(range(16))


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    files=st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=3), min_size=1, max_size=2),
    rows_per_part=st.integers(20, 300),
    segments=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4),
    bad_share=st.sampled_from([0.0, 0.3]),
)
def test_any_segment_of_any_table_meets_its_features(
    tmp_path_factory, files, rows_per_part, segments, bad_share
):
    folder = tmp_path_factory.mktemp("table")
    generator = np.random.default_rng(0)
    first, is_bad = 0, {}
    for index, groups in enumerate(files):
        for number in range(first, first + sum(groups)):
            is_bad[number] = bool(generator.random() < bad_share)
        is_bad[0] = False
        images = [None if is_bad[n] else small(n) for n in range(first, first + sum(groups))]
        write_table(folder / "data" / f"{index}.parquet", images, groups)
        first += sum(groups)
    manifest = load_manifest(str(folder / "data"))
    assert manifest.rows_of_group.tolist() == [rows for groups in files for rows in groups]
    stored = write_features(
        folder / "features", str(folder / "data"), rows_per_part=rows_per_part, maps=False
    )

    layout = layout_of(manifest, rows_per_part=rows_per_part)
    paths = sorted((folder / "features").glob("*.parquet"))
    assert layout.names == [path.name for path in paths]
    written = [pq.read_metadata(path) for path in paths]
    rows = [part.row_group(group).num_rows for part in written for group in range(part.num_row_groups)]
    assert layout.rows_of_group.tolist() == rows and max(rows) <= 128

    source = with_features(Shards(manifest, image_column="image"), StoredFeatures(stored, manifest))
    for where, begin, length in segments:
        group = min(int(where * len(manifest.rows_of_group)), len(manifest.rows_of_group) - 1)
        size = int(manifest.rows_of_group[group])
        start = min(int(begin * size), size - 1)
        stop = start + 1 + int(length * (size - start - 1))
        found = list(source.read(Segment(group, start, stop, is_shared=True)))
        ids = [row_id for piece in found for row_id in piece.row_ids]
        assert ids == list(
            range(int(manifest.start_of_group[group]) + start, int(manifest.start_of_group[group]) + stop)
        )
        for row_id, features in zip(
            ids, itertools.chain.from_iterable(p.columns["features"] for p in found), strict=True
        ):
            if is_bad[row_id]:
                assert str(features) == NO_FEATURES
            else:
                np.testing.assert_array_equal(features, features_of(row_id))


@cache
def small(number):
    return encoded(number, size=(2, 2))


def write_table(path, images, groups):
    """A file with row groups of just these lengths."""
    path.parent.mkdir(exist_ok=True)
    table = pa.table({"image": pa.array(images, pa.binary())})
    with pq.ParquetWriter(path, table.schema) as writer:
        start = 0
        for rows in groups:
            writer.write_table(table.slice(start, rows))
            start += rows
