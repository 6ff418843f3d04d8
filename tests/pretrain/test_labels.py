"""Class names over several data sets: equal numbers must mean equal classes."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from pretrain.data.checking.check import check
from pretrain.data.packing.regroup import regroup
from pretrain.data.reading.labels import (
    ClassNames,
    class_counts,
    label_codes,
    labelled_rows,
    read_class_names_of,
)
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.shards import Shards, read_in_sequence
from tests.pretrain.shards import IMAGE, encoded, write_shards


def write(folder, labels, names=None):
    """Rows with these labels; `names` are those of a Hugging Face ClassLabel."""
    folder.mkdir(exist_ok=True)
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


def read_labels(manifest):
    shards = Shards(manifest, image_column="image", columns=["label"])
    return [label for piece in read_in_sequence(shards) for label in piece.columns["label"]]


def test_other_numberings_and_text_are_read_by_name(tmp_path):
    first = write(tmp_path / "a", [0, 1], ["cat", "dog"])
    urls = [
        first,
        write(tmp_path / "b", [0, 1, 2], ["owl", "dog", "cat"]),
        write(tmp_path / "c", ["cat", "dog"]),
    ]
    manifest = load_manifest(urls[:2], columns=["label"])
    classes = class_names(*urls[:2])
    assert classes.names == ["cat", "dog", "owl"]  # in the order in which the files declare them
    assert read_labels(manifest) == ["cat", "dog", "owl", "dog", "cat"]
    assert classes.ids(read_labels(manifest)).tolist() == [0, 1, 2, 1, 0]
    assert label_codes(manifest, "label").tolist() == [0, 1, 2, 1, 0]
    assert class_counts(manifest, "label", classes).tolist() == [2, 2, 1]
    train, text = (load_manifest(url, columns=["label"]) for url in (first, urls[2]))
    assert (
        read_class_names_of(train, text, "label").names
        == read_class_names_of(text, train, "label").names
        == ["cat", "dog"]
    )
    with pytest.raises(UserError, match=r"the validation data .* never shows: owl"):
        read_class_names_of(train, load_manifest(urls[1], columns=["label"]), "label")


def test_lists_of_numbers_are_read_by_name(tmp_path):
    urls = [
        write(tmp_path / "a", [[0, 1], []], ["cat", "dog"]),
        write(tmp_path / "b", [[1], [0]], ["dog", "cat"]),
    ]
    manifest = load_manifest(urls, columns=["label"])
    assert read_labels(manifest) == [["cat", "dog"], [], ["cat"], ["dog"]]
    classes = read_class_names_of(manifest, manifest, "label")
    assert classes.names == ["cat", "dog"] and class_counts(manifest, "label", classes).tolist() == [2, 2]


def test_numbers_without_names_are_compared_with_nothing_named(tmp_path):
    bare = write(tmp_path / "bare", [0, 1])
    for name, labels, names in (("named", [0, 1], ["cat", "dog"]), ("text", ["0", "1"], None)):
        other = write(tmp_path / name, labels, names)
        train, validation = load_manifest(bare, columns=["label"]), load_manifest(other, columns=["label"])
        for one, another in ((train, validation), (validation, train)):
            with pytest.raises(
                UserError, match=r"whole numbers without names in .*bare/0.parquet.*it is unknown which"
            ):
                read_class_names_of(one, another, "label")
    with pytest.raises(UserError, match="holds the number 2, but names 2 classes: cat, dog"):
        class_names(write(tmp_path / "beyond", [0, 2], ["cat", "dog"]))


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


def test_a_model_is_evaluated_by_names(tmp_path):
    manifest = load_manifest(write(tmp_path / "a", [0, 1], ["dog", "cat"]), columns=["label"])
    for values in ((0, 1), ("cat", "dog")):  # numbers are those of models of old
        assert ClassNames(values, ["cat", "dog"]).ids(read_labels(manifest)).tolist() == [1, 0]
    with pytest.raises(UserError, match="'dog' is not a class of the model"):
        ClassNames((0, 1), ["0", "1"]).ids(read_labels(manifest))


def test_folder_names_are_a_column(tmp_path):
    for folder, num in (
        ("label=cat/part=0", 3),
        ("label=a%20dog/part=1", 2),
        ("label=__HIVE_DEFAULT_PARTITION__/part=1", 1),
    ):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(
            pa.table({"image": [encoded(n) for n in range(num)]}), tmp_path / folder / "0.parquet"
        )
    manifest = load_manifest(str(tmp_path), columns=["label", "part"])
    assert labelled_rows(manifest, "label").tolist() == [1, 2, 3, 4, 5]  # by the names of folders
    used = manifest.with_rows_of_use(labelled_rows(manifest, "label"), "a label")
    assert sorted(read_labels(used)) == ["a dog"] * 2 + ["cat"] * 3
    assert read_class_names_of(used, used, "label").names == ["a dog", "cat"]
    report = check(str(tmp_path))
    assert report["labels"]["label"]["counts"] == {"cat": 3, "a dog": 2, "(null)": 1}
    assert any("'label' is read from the names of the folders" in note for note in report["notes"])
    regroup(str(tmp_path), str(tmp_path.parent / "fixed"))
    written = pq.read_table(str(tmp_path.parent / "fixed"))
    assert sorted(map(str, written["label"].to_pylist())) == ["None", "a dog", "a dog", "cat", "cat", "cat"]


@pytest.mark.parametrize(
    "kind", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_types_that_hold_the_same_are_read_alike(tmp_path, kind):
    folder = tmp_path / "set"
    write(folder, ["cat", "dog"])
    try:
        write(tmp_path / "other", pa.array(["dog", "owl"]).cast(kind))
    except pa.ArrowNotImplementedError as error:
        pytest.skip(f"pyarrow {pa.__version__} cannot write it: {error}")
    (folder / "1.parquet").write_bytes((tmp_path / "other" / "0.parquet").read_bytes())
    assert class_names(str(folder)).names == ["cat", "dog", "owl"]
