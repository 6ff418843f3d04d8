"""The report tells what is in a data set, and which rows are bad and where."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cluster.errors import UserError
from pretrain.data.check import check, parse_rows, print_report
from pretrain.data.packing import pack, schema_of
from tests.pretrain.shards import encoded, photo, write_shards


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def printed(report):
    buffer = io.StringIO()
    print_report(report, Console(file=buffer, width=200, markup=False, emoji=False))
    return buffer.getvalue()


def test_counts_sizes_and_formats(tmp_path):
    images = [encoded(0, size=(10, 8)), encoded(1, size=(30, 20), form="JPEG"), encoded(2, size=(20, 40))] * 5
    url = write_shards(tmp_path / "data", images, rows_per_group=4, rows_per_file=10, label=["cat", "[dog]", "cat"] * 5)
    report = check(url, max_rows=None)
    assert json.loads(json.dumps(report)) == report
    assert (report["files"], report["rows"], report["decoded"], report["bad"]) == (2, 15, 15, 0)
    assert report["row_groups"]["count"] == 5 and report["row_groups"]["rows"] == {"min": 1, "median": 4, "max": 4}
    assert report["formats"] == {"PNG": 10, "JPEG": 5}
    assert report["width"] == {"min": 10, "median": 20, "max": 30}
    assert report["height"] == {"min": 8, "median": 20, "max": 40}
    assert report["labels"] == {"cat": 10, "[dog]": 5}
    assert report["columns"] == {"image": "struct<bytes: binary, path: string>", "label": "string"}
    text = printed(report)
    assert "2: cat 10, [dog] 5" in text and "10 to 30 pixels, median 20" in text and "warning" not in text


def test_bad_rows_are_told_with_their_place(tmp_path):
    images = [encoded(index) for index in range(40)]
    images[6], images[13], images[29] = None, b"<html>", photo(0)[:-300]
    report = check(write_shards(tmp_path / "data", images, rows_per_group=7, rows_per_file=20), max_rows=None)
    places = [
        (row["file"].rsplit("/", 1)[1], row["row_group"], row["row"], row["reason"]) for row in report["bad_rows"]
    ]
    assert places == [
        ("shard-00000.parquet", 0, 6, "null"),
        ("shard-00000.parquet", 1, 6, "not an image"),
        ("shard-00001.parquet", 1, 2, "truncated"),
    ]
    assert report["bad"] == 3 and report["formats"] == {"PNG": 37}
    text = printed(report)
    assert "warning: 3 of 40 rows cannot be decoded" in text and "row group 1 row 2: truncated" in text


def test_only_the_first_bad_rows_are_listed(tmp_path):
    report = check(write_shards(tmp_path / "data", [b"bad"] * 30), max_rows=None)
    assert report["bad"] == 30 and len(report["bad_rows"]) == 20 and report["width"] is None
    assert "... and 10 more" in printed(report)


def test_the_sample_is_spread_evenly(tmp_path):
    # every row of the second half is bad, and so is half of any even sample
    images = [encoded(index) for index in range(50)] + [b"bad"] * 50
    url = write_shards(tmp_path / "data", images)
    for num in (2, 10, 99):
        report = check(url, max_rows=num)
        assert report["decoded"] == num and abs(report["bad"] - num / 2) <= 0.5
    assert check(url, max_rows=1000)["decoded"] == 100


def test_labels_by_their_class_names(tmp_path):
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    schema = schema_of(label=pa.int64()).with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    rows = [{"image": {"bytes": encoded(1), "path": ""}, "label": label} for label in (1, 1, 0, None)]
    pack(rows, str(tmp_path / "data"), schema)
    assert check(str(tmp_path / "data"))["labels"] == {"dog": 2, "(null)": 1, "cat": 1}


def test_row_groups_too_large_to_shuffle(tmp_path):
    pq.write_table(pa.table({"pixels": [encoded(0, size=(1, 1))] * 5001}), tmp_path / "a.parquet")
    report = check(str(tmp_path), "pixels", 3)
    assert not report["row_groups"]["suits_shuffling"]
    assert "row groups of up to 5001 rows" in printed(report) and "row_group_size=64" in printed(report)
    pq.write_table(pa.table({"pixels": [encoded(0, size=(1, 1))] * 5001}), tmp_path / "a.parquet", row_group_size=64)
    assert check(str(tmp_path), "pixels", 3)["row_groups"]["suits_shuffling"]


def test_wrong_requests(tmp_path):
    url = write_shards(tmp_path / "data", [encoded(0)])
    with pytest.raises(UserError, match=r"no image column 'picture' \(columns there: image\)"):
        check(url, "picture")
    assert parse_rows("all") is None and parse_rows("12") == 12
    for text in ("0", "-1", "many", "1.5"):
        with pytest.raises(UserError, match=f"--rows must be .* not {text!r}"):
            parse_rows(text)
