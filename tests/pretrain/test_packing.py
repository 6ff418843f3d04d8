"""Shards are grouped as asked, appear only when complete, and other readers understand them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import storage
from cluster.errors import UserError
from pretrain.data.packing.packing import IMAGE_TYPE, ShardWriter, pack, schema_of
from pretrain.data.reading.manifest import load_manifest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def row(index, size=1000):
    return {
        "image": {"bytes": index.to_bytes(4, "big") + bytes(size - 4), "path": f"{index}.jpg"},
        "label": "cat",
    }


def rows_in(url):
    return [
        row for file in storage.find_files(url, ".parquet") for row in pq.read_table(file.url).to_pylist()
    ]


def test_rows_come_back_in_order_and_groups_are_bounded(tmp_path):
    dest = str(tmp_path / "out")
    writer = pack(map(row, range(150)), dest, schema_of(label=pa.string()), bytes_per_shard=64_000)
    assert rows_in(dest) == [row(index) for index in range(150)]
    manifest = load_manifest(dest, columns=["label"])
    # a shard ends with the group that reaches its size
    assert manifest.rows_of_group.tolist() == [64, 64, 22] and manifest.file_of_group.tolist() == [0, 1, 2]
    assert (writer.num_rows, writer.num_shards) == (150, 3)
    assert writer.num_bytes == sum(file.size_bytes for file in manifest.files)
    assert storage.names_in(dest) == [f"shard-0000{index}.parquet" for index in range(3)]


def test_a_group_ends_with_its_bytes_too(tmp_path):
    pack(map(row, range(20)), str(tmp_path), schema_of(label=pa.string()), bytes_per_group=5_000)
    manifest = load_manifest(str(tmp_path))
    assert manifest.rows_of_group.tolist() == [4] * 5  # no more than was asked for


def test_images_are_stored_as_they_are(tmp_path):
    pack(map(row, range(10)), str(tmp_path), schema_of(label=pa.string(), boxes=pa.list_(pa.float32())))
    group = pq.read_metadata(tmp_path / "shard-00000.parquet").row_group(0)
    columns = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
    image = columns["image.bytes"]
    assert image.compression == "UNCOMPRESSED" and not image.is_stats_set and not image.has_dictionary_page
    assert columns["label"].compression == "ZSTD" and columns["label"].is_stats_set
    # stored as it is means that the very bytes stand in the file
    assert row(3)["image"]["bytes"] in (tmp_path / "shard-00000.parquet").read_bytes()


def test_hugging_face_sees_images_and_keeps_given_class_names(tmp_path):
    class_label = {"label": {"names": ["cat"], "_type": "ClassLabel"}}
    given = schema_of(label=pa.int64()).with_metadata(
        {"huggingface": json.dumps({"info": {"features": class_label}})}
    )
    pack([], str(tmp_path / "none"), given)
    pack([{**row(0), "label": 0}], str(tmp_path), given)
    schema = pq.read_schema(tmp_path / "shard-00000.parquet")
    assert json.loads(schema.metadata[b"huggingface"])["info"]["features"] == {
        "image": {"_type": "Image"},
        **class_label,
    }
    assert schema.field("image").type == IMAGE_TYPE  # the storage type of datasets.Image
    assert storage.names_in(str(tmp_path / "none")) == []


def test_pandas_reads_it(tmp_path):
    pandas = pytest.importorskip("pandas")
    pack(map(row, range(3)), str(tmp_path), schema_of(label=pa.string()))
    frame = pandas.read_parquet(tmp_path)
    assert list(frame.columns) == ["image", "label"] and frame["image"][2]["path"] == "2.jpg"


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        ShardWriter(str(tmp_path / "out"), schema_of(label=pa.string()), bytes_per_shard=10_000) as writer,
    ):
        for index in range(200):
            writer.write(row(index))
        assert writer.num_shards > 1
        raise KeyboardInterrupt
    assert list((tmp_path / "out").iterdir()) == []


def test_shards_are_never_mixed_with_older_ones(tmp_path):
    pack([row(0)], str(tmp_path), schema_of(label=pa.string()))
    with pytest.raises(UserError, match=r"already holds shard-00000\.parquet"):
        pack([row(1)], str(tmp_path), schema_of(label=pa.string()))


def test_a_column_that_the_schema_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\['lable'\] are not in the schema"):
        pack([{"lable": "cat"}], str(tmp_path), schema_of(label=pa.string()))
    with pytest.raises(UserError, match="Not a directory"):
        (tmp_path / "file").write_text("")
        pack([row(0)], str(tmp_path / "file" / "out"), schema_of(label=pa.string()))


def test_writes_to_s3(s3_server):
    dest = f"{s3_server.url}/packed"
    pack(map(row, range(100)), dest, schema_of(label=pa.string()), bytes_per_shard=50_000)
    assert load_manifest(dest).rows_of_group.tolist() == [64, 36]
