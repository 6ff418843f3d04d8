"""Images that lie in a shard as they are, read without Arrow: the rows that Arrow gives, or Arrow reads."""

import itertools
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.order import Segment
from pretrain.data.reading.plain_values import NotPlain, PlainValues
from pretrain.data.reading.shards import Shards, read_in_sequence
from tests.pretrain.shards import IMAGE

# rows of the two row groups, bytes of a value at most: empty and tiny ones, some above both thresholds
SIZES = {"tiny": (300, 9), "small": (150, 30_000), "large": (9, 300_000)}
LAYOUTS = {
    "as an import writes": {"use_dictionary": False, "write_statistics": False},
    "with statistics": {"use_dictionary": False},
    "second version": {"use_dictionary": False, "data_page_version": "2.0"},
    "many pages": {"use_dictionary": False, "data_page_size": 1000, "write_batch_size": 7},
}
NOT_PLAIN = {
    "compressed": {"use_dictionary": False, "compression": "SNAPPY"},
    "compressed, second version": {
        "use_dictionary": False,
        "compression": "ZSTD",
        "data_page_version": "2.0",
    },
    "a dictionary": {"use_dictionary": True},
    "deltas of lengths": {"use_dictionary": False, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY"},
}


def values(num, max_bytes, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.bytes(int(size)) for size in generator.integers(0, max_bytes, num)]


def column(kind, images):
    if kind != "struct":
        return pa.array(images, {"binary": pa.binary(), "large": pa.large_binary()}[kind])
    return pa.array([None if data is None else {"bytes": data, "path": "x.jpg"} for data in images], IMAGE)


def written(folder, images, *, kind="struct", nullable=True, **options):
    folder.mkdir(exist_ok=True)
    array = column(kind, images)
    schema = pa.schema([pa.field("image", array.type, nullable=nullable)])
    options.setdefault("compression", "NONE")
    pq.write_table(
        pa.table([array], schema=schema), folder / "a.parquet", row_group_size=len(images) // 2, **options
    )
    return Shards(load_manifest(str(folder)), image_column="image")


def plain(shards, group=0):
    name = (
        "image.bytes" if pa.types.is_struct(pq.read_schema(file_of(shards)).field("image").type) else "image"
    )
    return PlainValues(file_of(shards), pq.read_metadata(file_of(shards)), group, name)


def file_of(shards):
    return shards.manifest.files[0].url


def images_of(pieces):
    return [image for rows in pieces for image in rows.images]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["struct", "binary", "large"])
@pytest.mark.parametrize("size", SIZES)
def test_values_are_those_that_were_written(size, kind, layout, tmp_path):
    num, max_bytes = SIZES[size]
    images = values(2 * num, max_bytes)
    shards = written(tmp_path, images, kind=kind, **LAYOUTS[layout])
    with plain(shards, group=1) as found:
        assert found.read(found.positions(np.arange(num))) == images[num:]
        some = np.array([0, 3, num - 1])
        assert found.read(found.positions(some)) == [images[num + row] for row in some]
        assert len(found.positions(np.arange(num - 2, num + 5))) == 2  # there are no more
    assert images_of(read_in_sequence(shards)) == images


def test_a_column_without_levels(tmp_path):
    images = values(40, 5000)
    shards = written(tmp_path, images, kind="binary", nullable=False, use_dictionary=False)
    with plain(shards) as found:
        assert found.read(found.positions(np.arange(20))) == images[:20]


@pytest.mark.parametrize("layout", NOT_PLAIN)
def test_what_is_stored_in_another_way_is_read_by_arrow(layout, tmp_path):
    images = values(40, 5000)
    shards = written(tmp_path, images, kind="binary", **NOT_PLAIN[layout])
    with pytest.raises(NotPlain):
        plain(shards)
    assert images_of(read_in_sequence(shards)) == images


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("missing", [[0], [39], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]])
def test_where_some_are_null_arrow_reads(missing, version, tmp_path):
    images = [None if row in missing else data for row, data in enumerate(values(80, 900))]
    shards = written(tmp_path, images, use_dictionary=False, data_page_version=version)
    with pytest.raises(NotPlain):
        plain(shards)
    with plain(shards, group=1) as found:  # which has none
        assert found.read(found.positions(np.arange(40))) == images[40:]
    assert images_of(read_in_sequence(shards)) == images


def test_parts_and_choices_have_the_rows_that_arrow_gives(tmp_path, monkeypatch):
    images = values(300, 2000)
    shards = written(tmp_path, images, use_dictionary=False, data_page_size=5000, write_batch_size=11)
    chosen = Shards(
        shards.manifest.chosen(np.array([2, 3, 5, 90, 149, 150, 151, 222, 299])), image_column="image"
    )
    segments = [Segment(0, 0, 150, 4), Segment(1, 17, 113), Segment(0, 149, 150), Segment(1, 0, 1)]

    def told():
        whole = [list(shards.read(segment)) for segment in segments]
        few = [list(chosen.read(segment)) for segment in (Segment(0, 1, 4), Segment(1, 0, 4, 2))]
        return [
            list(itertools.chain.from_iterable(zip(rows.row_ids, rows.passes, rows.images, strict=True)
                                               for rows in pieces))
            for pieces in (*whole, *few)
        ]  # fmt: skip

    ours = told()
    assert [image for _, _, image in ours[-2]] == [images[3], images[5], images[90]]
    monkeypatch.setattr(Shards, "_plain_values", lambda *_: None)
    assert told() == ours


def test_further_columns_are_read_along(tmp_path):
    images = values(20, 900)
    pq.write_table(
        pa.table({"image": pa.array(images), "label": list(range(20))}),
        tmp_path / "a.parquet",
        compression="NONE",
    )
    shards = Shards(load_manifest(str(tmp_path)), image_column="image", columns=["label"])
    (rows,) = read_in_sequence(shards)
    assert (rows.images, rows.columns) == (images, {"label": list(range(20))})


def test_a_length_that_leaves_the_page_names_the_file_and_the_row_group(tmp_path):
    shards = written(tmp_path, values(40, 5000, seed=1), kind="binary", use_dictionary=False)
    path, before = file_of(shards), os.stat(file_of(shards))
    with plain(shards, group=1) as found:
        position = int(found.positions(np.arange(8))[7, 0]) - 4
    with open(path, "r+b") as file:
        file.seek(position)
        file.write((2**31 - 1).to_bytes(4, "little"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # damage that nobody announced
    with pytest.raises(UserError, match=r"a\.parquet: row group 1 cannot be read: .*end of its page"):
        list(shards.read(Segment(1, 0, 20)))
    assert images_of(shards.read(Segment(0, 0, 20))) == values(40, 5000, seed=1)[:20]


@pytest.mark.parametrize("damage", [b"\xff" * 40, b"\x1c" * 4000, b"\x15\x00\x15\x01\x15\x01" + bytes(40)])
def test_a_damaged_header_is_left_to_arrow(damage, tmp_path):
    shards = written(tmp_path, values(40, 5000), kind="binary", use_dictionary=False)
    path, before = file_of(shards), os.stat(file_of(shards))
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(damage)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=r"a\.parquet: row group 1 cannot be read"):
        list(shards.read(Segment(1, 0, 20)))


def test_files_are_closed(tmp_path):
    shards = written(tmp_path, values(400, 50), use_dictionary=False)
    open_before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        next(shards.read(Segment(1, 0, 200)))  # and left
        list(shards.read(Segment(0, 0, 200)))
    assert len(os.listdir("/proc/self/fd")) <= open_before + 1
