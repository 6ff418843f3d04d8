"""The row-group table is that of the files, is remembered only while they stay as they are,
and every bad file is named.
"""

import os
import shutil
import time

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from pretrain.data.reading import group_table
from pretrain.data.reading.manifest import load_manifest
from tests.pretrain.shards import encoded, write_shards


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def shards(tmp_path):
    """25 rows: files of 10, 10 and 5 rows in groups of 4."""
    labels = [index % 3 for index in range(25)]
    images = [encoded(index) for index in range(25)]
    return write_shards(tmp_path / "shards", images, rows_per_group=4, rows_per_file=10, label=labels)


def footers_read(monkeypatch):
    read = []
    real = group_table.read_footer
    monkeypatch.setattr(group_table, "read_footer", lambda file: read.append(file.url) or real(file))
    return read


def test_the_table_is_that_of_the_files(shards):
    manifest = load_manifest(shards, columns=["image", "label"])
    assert [file.url.rsplit("/", 1)[1] for file in manifest.files] == [
        f"shard-0000{i}.parquet" for i in range(3)
    ]
    assert manifest.rows_of_group.tolist() == [4, 4, 2, 4, 4, 2, 4, 1]
    assert manifest.file_of_group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert manifest.group_in_file.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert manifest.start_of_group.tolist() == [0, 4, 8, 10, 14, 18, 20, 24, 25]
    assert manifest.num_rows == 25
    kinds = [
        getattr(manifest, name).dtype.name for name in ("file_of_group", "group_in_file", "rows_of_group")
    ]
    assert [*kinds, manifest.bytes_of_group.dtype.name] == ["int32", "int32", "int64", "int64"]
    metadata = pq.read_metadata(manifest.files[1].url)
    assert metadata.row_group(2).column(0).path_in_schema == "image.bytes"
    assert manifest.bytes_of_group[5] == metadata.row_group(2).column(0).total_compressed_size


def test_locate_finds_the_very_row(shards):
    manifest = load_manifest(shards)
    groups, rows = manifest.locate(range(25))
    for row_id, group, row in zip(range(25), groups, rows):
        file = pq.ParquetFile(manifest.files[manifest.file_of_group[group]].url)
        table = file.read_row_group(int(manifest.group_in_file[group]))
        assert table["image"][int(row)]["bytes"].as_py() == encoded(row_id)


def test_empty_row_groups_and_files_are_left_out(tmp_path):
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for rows in ([], [b"x"], [], [b"y", b"z"]):
            writer.write_table(pa.table({"image": pa.array(rows, pa.binary())}))
    pq.write_table(schema.empty_table(), tmp_path / "b.parquet")
    manifest = load_manifest(str(tmp_path))
    table = pq.ParquetFile(tmp_path / "a.parquet")
    assert manifest.rows_of_group.tolist() == [1, 2]
    assert [table.read_row_group(int(group)).num_rows for group in manifest.group_in_file] == [1, 2]


def test_a_second_start_reads_no_footer(shards, monkeypatch):
    first = load_manifest(shards)
    read = footers_read(monkeypatch)
    second = load_manifest(shards)
    assert read == []
    assert second.fingerprint == first.fingerprint and (second.bytes_of_group == first.bytes_of_group).all()
    load_manifest(shards, columns=["label"])
    assert len(read) == 3, "other columns have to be checked"


def test_a_changed_file_is_noticed(shards, monkeypatch):
    first = load_manifest(shards)
    file = first.files[2].url
    table = pq.read_table(file)
    pq.write_table(table.slice(0, 4), file)
    read = footers_read(monkeypatch)
    second = load_manifest(shards)
    assert len(read) == 3 and second.num_rows == 24 and second.fingerprint != first.fingerprint
    # the same size but another time
    os.utime(file, (1, 1))
    assert load_manifest(shards).fingerprint == second.fingerprint and len(read) == 6


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 rubbish", None])
def test_a_damaged_cache_entry_is_rebuilt(shards, tmp_path, damage):
    first = load_manifest(shards)
    (entry,) = (tmp_path / "cache" / "fovea" / "manifests").iterdir()
    content = entry.read_bytes()
    entry.write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert load_manifest(shards).fingerprint == first.fingerprint
    assert entry.read_bytes() == content


def test_no_cache_where_none_can_be_written(shards, tmp_path):
    (tmp_path / "file").write_text("")
    assert load_manifest(shards, cache_dir=str(tmp_path / "file" / "cache")).num_rows == 25


def test_the_fingerprint_belongs_to_the_data_and_not_to_its_place(shards, tmp_path):
    fingerprint = load_manifest(shards).fingerprint
    assert load_manifest(f"{shards}/*.parquet").fingerprint == fingerprint
    shutil.copytree(shards, tmp_path / "deeper" / "elsewhere")
    assert load_manifest(str(tmp_path / "deeper" / "elsewhere")).fingerprint == fingerprint
    memory = fsspec.filesystem("memory")
    memory.put(shards + "/", "/bucket/moved/", recursive=True)
    assert load_manifest("memory://bucket/moved").fingerprint == fingerprint
    memory.rm("/bucket", recursive=True)
    os.rename(f"{shards}/shard-00002.parquet", f"{shards}/shard-00003.parquet")
    assert load_manifest(shards).fingerprint != fingerprint


def test_the_same_bytes_grouped_otherwise_are_other_data(tmp_path):
    images = [encoded(index) for index in range(8)]
    fingerprints = {
        load_manifest(write_shards(tmp_path / f"by{rows}", images, rows_per_group=rows)).fingerprint
        for rows in (2, 4)
    }
    assert len(fingerprints) == 2


def test_several_data_sets_in_the_order_given(shards, tmp_path):
    other = write_shards(tmp_path / "other", [encoded(n) for n in range(7)], rows_per_group=4)
    manifest = load_manifest([shards, other])
    assert manifest.num_rows == 32
    assert manifest.rows_of_group[manifest.source_of_group == 1].tolist() == [4, 3]
    assert manifest.files[-1].url.startswith(other)
    groups, rows = manifest.locate([25])
    assert manifest.source_of_group[groups[0]] == 1 and rows[0] == 0
    file = f"{shards}/shard-00001.parquet"
    assert load_manifest(file).num_rows == 10
    with pytest.raises(
        UserError, match=r"shard-00001.parquet is in .* and again in .*; name each file once"
    ):
        load_manifest([file, f"{shards}/*.parquet"])


def test_reads_from_s3(s3_server, shards):
    fs, path = fsspec.core.url_to_fs(f"{s3_server.url}/manifest")
    fs.put(shards + "/", path, recursive=True)
    manifest = load_manifest(f"{s3_server.url}/manifest")
    assert manifest.num_rows == 25 and manifest.files[0].url.startswith("s3://")
    assert manifest.fingerprint == load_manifest(shards).fingerprint


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])],
)
def test_kinds_of_image_columns(tmp_path, kind):
    values = [{"bytes": b"x", "path": "p"} if pa.types.is_struct(kind) else b"x"] * 3
    pq.write_table(pa.table({"picture": pa.array(values, kind)}), tmp_path / "a.parquet")
    manifest = load_manifest(str(tmp_path), image_column="picture")
    assert manifest.num_rows == 3 and manifest.bytes_of_group[0] > 0


def with_file(folder, name, content):
    (folder / name).write_bytes(content)


def with_table(folder, **columns):
    pq.write_table(pa.table(columns), folder / "z.parquet")


BAD_FILES = {
    "empty": (
        lambda folder: with_file(folder, "z.parquet", b""),
        r"z\.parquet is not a Parquet file: it has only 0 b",
    ),
    "a web page": (
        lambda folder: with_file(folder, "z.parquet", b"<html>no such key</html>"),
        r"z\.parquet is not a Parquet file: it begins with b'<htm",
    ),
    "truncated": (
        lambda folder: with_file(folder, "z.parquet", (folder / "a.parquet").read_bytes()[:-100]),
        r"z\.parquet is truncated",
    ),
    "impossible footer": (
        lambda folder: with_file(folder, "z.parquet", b"PAR1" + b"\xff" * 8 + b"PAR1"),
        r"z\.parquet is truncated or damaged",
    ),
    "damaged footer": (
        lambda folder: with_file(folder, "z.parquet", b"PAR1" + bytes(40) + b"\x20\0\0\0PAR1"),
        r"z\.parquet is damaged: its footer",
    ),
    "no image column": (
        lambda folder: with_table(folder, img=[b"x"], label=[1]),
        r"z\.parquet has no image column 'image'; did you mean 'img'\? \(columns there: img, label\)",
    ),
    "images of text": (
        lambda folder: with_table(folder, image=["x"], thumb=[b"x"], label=[1]),
        r"z\.parquet: column 'image' is string; images must be .*; columns that could be: thumb",
    ),
    "no label column": (
        lambda folder: with_table(folder, image=[b"x"]),
        r"z\.parquet has no column 'label'",
    ),
    "other images": (
        lambda folder: with_table(folder, image=[b"x"], label=[1]),
        r"column 'image' is struct<.*> in .*a\.parquet but binary in .*z\.parquet",
    ),
    "other labels": (
        lambda folder: with_table(folder, image=[{"bytes": b"x", "path": ""}], label=["cat"]),
        r"column 'label' is int64 in .*a\.parquet but string in .*z\.parquet",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named(shards, tmp_path, case):
    break_it, message = BAD_FILES[case]
    folder = tmp_path / "shards"
    shutil.copy(folder / "shard-00000.parquet", folder / "a.parquet")
    break_it(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_manifest(shards, columns=["label"])
    assert "\n" not in str(caught.value)


def test_a_file_cut_in_its_middle_is_noticed(shards, tmp_path):
    file = tmp_path / "shards" / "shard-00001.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:100] + content[-(int.from_bytes(content[-8:-4], "little") + 8) :])
    with pytest.raises(UserError, match=r"shard-00001\.parquet is truncated: row group 0"):
        load_manifest(shards)


def test_a_large_footer_is_read_whole(tmp_path):
    schema = pa.schema([("image", pa.binary())], metadata={"note": "x" * 200_000})
    pq.write_table(pa.table({"image": [b"x"]}, schema=schema), tmp_path / "a.parquet")
    assert load_manifest(str(tmp_path)).num_rows == 1


@pytest.mark.parametrize(
    ("name", "content", "url", "message"),
    [
        ("x.txt", b"", "missing", "missing does not exist"),
        ("x.txt", b"", ".", r"no \.parquet files in the folder"),
        ("x.txt", b"", "*.parquet", r"no \.parquet file matches"),
        ("cats/x.JPG", b"", ".", r"holds image files .* python -m pretrain\.data import "),
    ],
)
def test_nothing_to_read(tmp_path, name, content, url, message):
    (tmp_path / "cats").mkdir()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_manifest(str(tmp_path / url))


def test_an_import_that_is_not_finished_is_refused(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "dest" / "train")
    assert load_manifest(str(tmp_path / "dest" / "train")).num_rows == 25
    (tmp_path / "dest" / ".unfinished").mkdir()
    (tmp_path / "dest" / ".unfinished" / "journal.json").write_text("{}")
    for url in (tmp_path / "dest", tmp_path / "dest" / "train"):
        with pytest.raises(UserError, match=r"holds an import that is not finished"):
            load_manifest(str(url))


def test_no_rows(tmp_path):
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no rows in 1 Parquet file$"):
        load_manifest(str(tmp_path))


def test_many_files_take_little_time(tmp_path):
    """A tenth of the scale that the design names."""
    pq.write_table(pa.table({"image": [b"x"] * 512}), tmp_path / "0.parquet", row_group_size=64)
    for index in range(1, 200):
        os.link(tmp_path / "0.parquet", tmp_path / f"{index}.parquet")
    started = time.monotonic()
    manifest = load_manifest(str(tmp_path))
    assert manifest.num_rows == 200 * 512 and np.unique(manifest.file_of_group).size == 200
    assert time.monotonic() - started < 5
