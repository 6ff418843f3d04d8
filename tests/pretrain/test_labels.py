"""Class names over several data sets: equal numbers must mean equal classes."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from pretrain.data.labels import ClassNames, check_numbering, class_counts, labelled_rows, read_class_names_of
from pretrain.data.manifest import load_manifest
from pretrain.data.shards import Shards, read_in_sequence
from tests.pretrain.shards import IMAGE, encoded, write_shards


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


def test_rows_without_a_label_are_left_out_and_counted(tmp_path):
    labels = ["a" if n % 3 else None for n in range(20)] + [None] * 7 + ["b"] * 3  # one row group has none
    url = write_shards(tmp_path / "some", [encoded(n) for n in range(30)], label=labels, rows_per_group=7)
    manifest = load_manifest(url, columns=["label"])
    known = [n for n, label in enumerate(labels) if label is not None]
    rows = labelled_rows(manifest, "label")
    assert rows.tolist() == known
    used = manifest.with_rows_of_use(rows, "a label")
    assert used.num_rows == len(known) and used.num_left_out == 30 - len(known)
    assert class_counts(used, "label", read_class_names_of(used, used, "label")).tolist() == [13, 3]
    # of those that are left some can be chosen, and lie where they did
    chosen = used.chosen(np.array([0, 2, 12, 15, 15]))
    groups, places = chosen.locate(np.arange(5))
    wanted = [known[n] for n in (0, 2, 12, 15, 15)]
    assert [(int(chosen.group_in_file[g]), int(p)) for g, p in zip(groups, places, strict=True)] == [
        divmod(n, 7) for n in wanted
    ]
    shards = Shards(chosen, image_column="image", columns=["label"])
    read = [row for piece in read_in_sequence(shards) for row in piece.columns["label"]]
    assert read == [labels[n] for n in wanted]
    all_known = write_shards(tmp_path / "all", [encoded(n) for n in range(4)], label=["a", "b"] * 2)
    assert labelled_rows(load_manifest(all_known, columns=["label"]), "label") is None


def test_minus_one_is_no_label_where_names_are_declared(tmp_path):
    url = write_shards(tmp_path / "plain", [encoded(n) for n in range(4)], label=[-1, 1, -1, 1])
    assert labelled_rows(load_manifest(url, columns=["label"]), "label") is None  # classes of those numbers
    named = write(tmp_path / "named", [-1, 1, 0, -1], ["cat", "dog"])
    assert labelled_rows(load_manifest(named, columns=["label"]), "label").tolist() == [1, 2]
    with pytest.raises(UserError, match="none of 4 rows has a label"):
        load_manifest(url).with_rows_of_use(np.array([], np.int64), "a label")


def test_every_file_and_the_validation_data_are_asked_for_names(tmp_path):
    folder = tmp_path / "set"
    write(folder, [0, 1], ["cat", "dog"])
    write(tmp_path / "other", [0, 1], ["dog", "cat"])
    write(tmp_path / "none", [0, 1])
    for name, words in (
        ("other", "1.parquet has other class names"),
        ("none", "1.parquet has no names for its numbers"),
    ):
        both = load_manifest(str(folder), columns=["label"])
        other = load_manifest(str(tmp_path / name), columns=["label"])
        with pytest.raises(UserError, match=words.replace("1.parquet", "0.parquet")):
            read_class_names_of(both, other, "label")
        (folder / "1.parquet").write_bytes((tmp_path / name / "0.parquet").read_bytes())
        with pytest.raises(UserError, match=words):
            class_names(str(folder))
        (folder / "1.parquet").unlink()


def test_a_model_is_not_judged_by_other_numbers(tmp_path):
    write(tmp_path / "a", [0, 1], ["dog", "cat"])
    manifest = load_manifest(str(tmp_path / "a"), columns=["label"])
    check_numbering(manifest, "label", ClassNames((0, 1), ["dog", "cat"]))
    check_numbering(manifest, "label", ClassNames((0, 1), ["0", "1"]))
    with pytest.raises(UserError, match="calls class 0 'dog', and the model calls it 'cat'"):
        check_numbering(manifest, "label", ClassNames((0, 1), ["cat", "dog"]))


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_types_that_hold_the_same_are_read_alike(tmp_path, kind):
    folder = tmp_path / "set"
    write(folder, ["cat", "dog"])
    write(tmp_path / "other", pa.array(["dog", "owl"]).cast(kind))
    (folder / "1.parquet").write_bytes((tmp_path / "other" / "0.parquet").read_bytes())
    assert class_names(str(folder)).names == ["cat", "dog", "owl"]
