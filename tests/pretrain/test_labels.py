"""Class names over several data sets: equal numbers must mean equal classes."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from pretrain.data.labels import read_class_names_of
from pretrain.data.manifest import load_manifest
from tests.pretrain.shards import IMAGE, encoded


def write(folder, labels, names=None):
    """Rows with these labels; `names` are those of a Hugging Face ClassLabel."""
    folder.mkdir()
    features = {"label": {"_type": "ClassLabel", "names": names}} if names else {}
    table = pa.table(
        {
            "image": pa.array([{"bytes": encoded(n), "path": ""} for n in range(len(labels))], IMAGE),
            "label": labels,
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, folder / "0.parquet")
    return str(folder)


def class_names(*urls):
    manifest = load_manifest(list(urls), columns=["label"])
    return read_class_names_of(manifest, load_manifest(urls[0], columns=["label"]), "label")


def test_the_same_names_are_one_data_set(tmp_path):
    urls = [write(tmp_path / name, [0, 1, 1], ["cat", "dog", "owl"]) for name in "ab"]
    assert class_names(*urls).names == ["cat", "dog", "owl"]
    urls = [write(tmp_path / "c", ["dog", "cat"]), write(tmp_path / "d", ["owl", "cat"])]
    assert class_names(*urls).names == ["cat", "dog", "owl"]


def test_other_names_or_kinds_are_refused(tmp_path):
    first = write(tmp_path / "a", [0, 1], ["cat", "dog"])
    with pytest.raises(UserError, match=r"b/0\.parquet has other class names"):
        class_names(first, write(tmp_path / "b", [0, 1], ["dog", "cat"]))
    with pytest.raises(UserError, match="text in one data set and whole numbers in another"):
        class_names(first, write(tmp_path / "c", ["cat", "dog"]))
