"""The report tells what is in a data set, and which rows are bad and where."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image
from rich.console import Console

from cluster.errors import UserError
from pretrain.data.checking.check import check, copies_of, parse_rows
from pretrain.data.checking.check_report import print_report, printable
from pretrain.data.checking.columns import Asked
from pretrain.data.checking.row_groups import num_mates, num_mates_of_all
from pretrain.data.packing.packing import pack, schema_of
from pretrain.data.reading.labels import distinct_labels, read_class_names_of
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.order import Order
from tests.pretrain.shards import encoded, photo, write_shards
from tests.pretrain.test_annotations import tables


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def printed(report):
    buffer = io.StringIO()
    print_report(report, Console(file=buffer, width=200, markup=False, emoji=False))
    return buffer.getvalue()


def test_counts_sizes_and_formats(tmp_path):
    images = [
        encoded(0, size=(10, 8)),
        encoded(1, size=(30, 20), form="JPEG"),
        encoded(2, size=(20, 40)),
    ] * 5
    url = write_shards(
        tmp_path / "data", images, rows_per_group=4, rows_per_file=10, label=["cat", "[dog]", "cat"] * 5
    )
    report = check(url, max_rows=None)
    assert json.loads(json.dumps(report)) == report
    assert (report["files"], report["rows"], report["decoded"], report["bad"]) == (2, 15, 15, 0)
    assert report["row_groups"]["count"] == 5 and report["row_groups"]["rows"] == {
        "min": 1,
        "median": 4,
        "max": 4,
    }
    assert report["formats"] == {"PNG": 10, "JPEG": 5}
    assert report["width"] == {"min": 10, "median": 20, "max": 30}
    assert report["height"] == {"min": 8, "median": 20, "max": 40}
    assert report["labels"]["label"]["counts"] == {"cat": 10, "[dog]": 5}
    assert report["columns"] == {"image": "struct<bytes: binary, path: string>", "label": "string"}
    text = printed(report)
    assert "2: cat 10, [dog] 5" in text and "10 to 30 pixels, median 20" in text and "warning" not in text


def test_bad_rows_are_told_with_their_place(tmp_path):
    images = [encoded(index) for index in range(40)]
    images[6], images[13], images[29] = None, b"<html>", photo(0)[:-300]
    report = check(
        write_shards(tmp_path / "data", images, rows_per_group=7, rows_per_file=20), max_rows=None
    )
    places = [
        (row["file"].rsplit("/", 1)[1], row["row_group"], row["row"], row["reason"])
        for row in report["bad_rows"]
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
    schema = schema_of(label=pa.int64()).with_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    rows = [{"image": {"bytes": encoded(1), "path": ""}, "label": label} for label in (1, 1, 0, None)]
    pack(rows, str(tmp_path / "data"), schema)
    labels = check(str(tmp_path / "data"))["labels"]["label"]
    assert labels["counts"] == {"dog": 2, "(null)": 1, "cat": 1}
    assert (labels["classes"], labels["values"], labels["rows_without"]) == (2, 3, 1)


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.int8()), pa.list_(pa.string(), 2)],
)
def test_lists_of_classes(tmp_path, kind):
    one, two = (1, 2) if kind.value_type == pa.int8() else ("1", "2")
    rows = [[one, two], [two, two], None] + ([[], [two]] if not pa.types.is_fixed_size_list(kind) else [])
    table = pa.table({"image": [encoded(n) for n in range(len(rows))], "labels": pa.array(rows, kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    labels = check(str(tmp_path))["labels"]["labels"]
    more = len(rows) - 3
    assert labels["counts"] == {"2": 3 + more // 2, "1": 1} and labels["rows_without"] == 1 + more // 2
    assert (labels["is_list"], labels["classes"], labels["values"]) == (True, 2, 4 + more // 2)


def test_labels_kept_as_a_dictionary(tmp_path):
    label = pa.array(["dog", "cat", "dog"]).dictionary_encode()
    pq.write_table(
        pa.table({"image": [encoded(n) for n in range(3)], "label": label}), tmp_path / "a.parquet"
    )
    assert check(str(tmp_path))["labels"]["label"]["counts"] == {"dog": 2, "cat": 1}
    manifest = load_manifest(str(tmp_path))
    assert read_class_names_of(manifest, manifest, "label").names == ["cat", "dog"]


def test_copies_are_found():
    digests = np.array([[7, 1], [0, 0], [1, 7], [7, 1], [0, 0], [7, 1], [1, 7], [7, 7]], dtype=np.uint64)
    assert copies_of(digests).tolist() == [[3, 0], [5, 0], [6, 2]]
    assert copies_of(digests[:1]).shape == (0, 2)


def test_row_groups_too_large_to_shuffle(tmp_path):
    pq.write_table(pa.table({"pixels": [encoded(0, size=(1, 1))] * 5001}), tmp_path / "a.parquet")
    report = check(str(tmp_path), "pixels", 3)
    assert not report["row_groups"]["suits_shuffling"]
    assert "row groups of up to 5001 rows" in printed(report) and "row_group_size=64" in printed(report)
    pq.write_table(
        pa.table({"pixels": [encoded(0, size=(1, 1))] * 5001}), tmp_path / "a.parquet", row_group_size=64
    )
    assert check(str(tmp_path), "pixels", 3)["row_groups"]["suits_shuffling"]


def test_wrong_requests(tmp_path):
    url = write_shards(tmp_path / "data", [encoded(0)])
    with pytest.raises(UserError, match=r"no image column 'picture' \(columns there: image\)"):
        check(url, "picture")
    assert parse_rows("all") is None and parse_rows("12") == 12
    for text in ("0", "-1", "many", "1.5"):
        with pytest.raises(UserError, match=f"--rows must be .* not {text!r}"):
            parse_rows(text)


OBJECTS = pa.struct([("bbox", pa.list_(pa.list_(pa.float32()))), ("category", pa.list_(pa.string()))])


def annotated(folder):
    """Six images of 20 x 10 pixels, of which three are equal and one is bad,
    with annotations of every kind.
    """
    images = [encoded(number, size=(20, 10)) for number in (1, 2, 1, 3, 1)] + [b"not an image"]
    objects = [
        {"bbox": [[0, 0, 20, 10], [5, 5, 3, 3]], "category": ["cat", "dog"]},
        {"bbox": [[-5, 0, 10, 10], [15, 5, 10, 4], [3, 3, 0, 5]], "category": ["dog", "dog", "cat"]},
        {"bbox": [], "category": []},
        None,
        {"bbox": [[0, 0, 5, 5], [1, 2, 3, None]], "category": ["cat", "cat"]},
        {"bbox": [[100, 100, 900, 900]], "category": ["dog"]},
    ]
    return write_shards(
        folder,
        images,
        rows_per_group=2,
        rows_per_file=4,
        objects=[pa.scalar(value, OBJECTS) for value in objects],
        captions=[["a cat", "two  cats"], [" "], [], None, ["cafe\u0301", None], ["a dog"]],
        labels=[["red", "big"], ["red"], [], None, ["big"], ["red"]],
        caption=["x"] * 6,
    )


def test_annotations_with_known_counts(tmp_path):
    report = check(annotated(tmp_path / "data"), max_rows=None)
    assert json.loads(json.dumps(report)) == report
    assert report["labels"] == {
        "labels": {
            "is_list": True,
            "classes": 2,
            "values": 5,
            "rows_without": 2,
            "counts": {"red": 3, "big": 2},
        }
    }
    captions = {"column": "captions", "captions": 4, "rows_with": 3, "rows_without": 3, "empty": 2}
    assert report["captions"] == {**captions, "mean_characters": 5.75, "mean_words": 1.75}
    boxes = report["boxes"]
    assert (boxes["boxes"], boxes["rows_without"], boxes["max_per_row"]) == (6, 2, 3)
    assert boxes["classes"] == {"dog": 4, "cat": 2} and (boxes["outside"], boxes["degenerate"]) == (2, 1)
    assert report["bad"] == 1 and report["bad_annotations"] == 1
    (bad,) = report["bad_annotation_rows"]
    assert (bad["row_group"], bad["row"], bad["column"]) == (0, 0, "objects")
    assert (
        bad["file"].endswith("shard-00001.parquet") and bad["reason"] == "bbox[1] is not four finite numbers"
    )
    text = printed(report)
    assert (
        "6 boxes: dog 4, cat 2; up to 3 a row, 2 rows without; 2 reach beyond the image, 1 without area"
        in text
    )
    assert "4 captions of 6 characters (1.8 words) on average; 3 rows with, 3 without; 2 empty" in text
    assert "2: red 3, big 2; 5 in all, 2 rows without" in text
    assert "warning: 1 annotations cannot be used" in text


def test_duplicates_are_told_with_the_first_of_them(tmp_path):
    report = check(annotated(tmp_path / "data"), max_rows=None)
    assert report["duplicates"] == 2
    places = [
        tuple((row["file"][-13:-8], row["row_group"], row["row"]) for row in (copy, copy["same_as"]))
        for copy in report["duplicate_rows"]
    ]
    assert places == [(("00000", 1, 0), ("00000", 0, 0)), (("00001", 0, 0), ("00000", 0, 0))]
    assert "2 of 6 rows have the bytes of an earlier one" in printed(report)
    nulls = check(write_shards(tmp_path / "nulls", [None] * 4 + [encoded(0)]), max_rows=None)
    assert nulls["duplicates"] == 0 and nulls["bad"] == 4


def test_columns_that_are_asked_for(tmp_path):
    url = annotated(tmp_path / "data")
    report = check(url, asked=Asked(classes=("caption", "labels"), captions="caption", box_format="xyxy"))
    assert list(report["labels"]) == ["caption", "labels"] and report["captions"]["captions"] == 6
    assert report["boxes"]["box_format"] == "xyxy"
    with pytest.raises(UserError, match="no column 'object'; did you mean 'objects'"):
        check(url, asked=Asked(boxes="object"))
    with pytest.raises(UserError, match="captions must be string"):
        check(url, asked=Asked(captions="objects"))
    # of the usual name, but of another use: not looked at, unless somebody says so
    other = write_shards(tmp_path / "other", [encoded(0)], label=[0.5], objects=["a"], captions=[3])
    report = check(other)
    assert report["labels"] == {} and report["boxes"] is None and report["captions"] is None
    assert [reason.partition(";")[0].partition(": ")[2] for reason in report["passed_over"]] == [
        "column 'label' is double",
        "column 'objects' is string",
        "column 'captions' is int64",
    ]
    assert "note: not looked at: " in printed(report) and "classes must be text or whole numbers" in printed(
        report
    )


def test_boxes_are_found_whatever_their_column_is_called(tmp_path):
    url = write_shards(
        tmp_path, [encoded(0)], annotations=[[{"bbox": [1, 2, 3, 4], "category_id": 7}]], other=["x"]
    )
    boxes = check(url)["boxes"]
    assert (boxes["column"], boxes["boxes"], boxes["classes"]) == ("annotations", 1, {"7": 1})


def test_types_that_arrow_cannot_select_from(tmp_path):
    view = pa.string_view()
    objects = pa.struct([("bbox", pa.list_(pa.list_(pa.float32()))), ("category", pa.list_(view))])
    columns = {
        "label": pa.array(["a", "b", None], view),
        "captions": pa.array([["x"], None, ["y", None]], pa.list_(view)),
        "objects": pa.array([{"bbox": [[1, 2, 3, 4]], "category": ["cat"]}, None, {}], objects),
    }
    pq.write_table(pa.table({"image": [encoded(n) for n in range(3)], **columns}), tmp_path / "a.parquet")
    report = check(str(tmp_path))
    assert report["labels"]["label"]["counts"] == {"(null)": 1, "a": 1, "b": 1}
    assert report["captions"]["captions"] == 2 and report["boxes"]["classes"] == {"cat": 1}


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(table=tables())
def test_whatever_objects_hold_the_report_is_made(tmp_path, table):
    schema, objects = table
    images = pa.array([encoded(n) for n in range(len(objects))] or [encoded(0)], pa.binary())
    objects = objects if len(objects) else pa.nulls(1, schema.field(0).type)
    pq.write_table(pa.table({"image": images, "objects": objects}), tmp_path / "a.parquet")
    report = check(str(tmp_path), sheet_url=str(tmp_path / "sheet.png"))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    used = report["boxes"]["rows_without"] + report["bad_annotations"]
    assert used <= report["rows"] and "objects" in printed(report)


@pytest.mark.parametrize(("box_format", "other"), [("xywh", "xyxy"), ("xyxy", "xywh")])
def test_boxes_of_another_format_are_noticed(tmp_path, box_format, other):
    corners = [[60, 30, 90, 60], [5, 50, 50, 55], [80, 80, 100, 100]]
    boxes = [[x, y, *((x2, y2) if other == "xyxy" else (x2 - x, y2 - y))] for x, y, x2, y2 in corners]
    objects = [{"bbox": boxes, "category": ["a"] * 3}] * 10
    url = write_shards(tmp_path / "data", [encoded(n, size=(100, 100)) for n in range(10)], objects=objects)
    wrong = check(url, asked=Asked(box_format=box_format))
    assert f"nearly all do as {other}; try --box-format {other}" in wrong["boxes"]["advice"][0]
    assert f"try --box-format {other}" in printed(wrong)
    assert not check(url, asked=Asked(box_format=other))["boxes"]["advice"]


def test_boxes_in_shares_of_the_image_are_noticed(tmp_path):
    objects = [{"bbox": [[0.1, 0.2, 0.5, 0.5]] * 3, "category": ["a"] * 3}] * 10
    url = write_shards(tmp_path / "data", [encoded(n, size=(100, 100)) for n in range(10)], objects=objects)
    assert "look like fractions" in check(url)["boxes"]["advice"][0]


def test_text_that_could_harm(tmp_path):
    evil = "a\x1b]0;owned\x07\u202eb\nc"
    url = write_shards(tmp_path / "data", [encoded(n) for n in range(2)], label=[evil, "x" * 1000])
    report = check(url)
    assert report["labels"]["label"]["counts"] == {evil: 1, "x" * 1000: 1}
    text = printed(report)
    assert not any(sign in text for sign in "\x1b\x07\u202e") and "\\x1b]0;owned\\x07\\u202eb\\nc 1" in text
    assert "x" * 201 not in text
    assert printable("caf\u00e9 \u732b \ud800") == "caf\u00e9 \u732b \\ud800"


def test_text_that_is_not_utf8(tmp_path):
    broken = pa.array([b"good", b"\xff\xfe", b"\xff", b"good"]).view(pa.string())
    table = pa.table({"image": [encoded(n) for n in range(4)], "label": broken, "caption": broken})
    pq.write_table(table, tmp_path / "a.parquet")
    report = check(str(tmp_path))
    assert report["labels"]["label"]["counts"] == {"(not UTF-8)": 2, "good": 2}
    assert report["captions"]["captions"] == 2 and report["bad_annotations"] == 4
    assert {row["reason"] for row in report["bad_annotation_rows"]} >= {"text that is not UTF-8"}
    json.dumps(report)
    with pytest.raises(UserError, match=r"a.parquet: column 'label' holds text that is not UTF-8"):
        distinct_labels(load_manifest(str(tmp_path)), "label")


def test_contact_sheet(tmp_path):
    red = (255 << 16) + 1
    images = [encoded(red, size=(100, 50)) for _ in range(99)] + [b"rubbish"]
    objects = [
        {"bbox": [[-50, 10, 100, 30], [-1e9, -1e9, 2e9, 2e9]], "category": ["caf\u00e9", "\u732b"]}
    ] * 100
    url = write_shards(
        tmp_path / "data", images, objects=objects, label=[f"\u732b \x1b {n}" * 30 for n in range(100)]
    )
    for name in ("a.png", "b.png"):
        check(url, max_rows=None, sheet_url=str(tmp_path / name))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.format == "PNG"
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    assert pixels.shape == (6 + 6 * (160 + 28 + 6), 6 + 8 * (160 + 6), 3)
    first = pixels[6 : 6 + 160, 6 : 6 + 160]
    # 100 x 50 pixels lie in the middle; the first box reaches from x=-50 to 50, the second around everything
    is_red = (np.abs(first - [255, 0, 1]) <= 3).all(axis=-1)
    ys, xs = np.nonzero(is_red)
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (30, 129, 55, 104)
    assert not is_red[60:100, 30 + 48 : 30 + 50][5:30].any()  # the box's right edge
    few = check(write_shards(tmp_path / "few", images[:3]), sheet_url=str(tmp_path / "few.png"))
    with Image.open(tmp_path / "few.png") as sheet:
        assert sheet.size == (6 + 3 * 166, 6 + 194) and few["decoded"] == 3
    check(write_shards(tmp_path / "bad", images[-1:]), sheet_url=str(tmp_path / "bad.png"))


def test_rows_of_one_row_group_in_a_batch(tmp_path):
    rows, found = np.full(400, 64), []
    for window_rows in (2048, 8192, 64 * 400):
        order = Order(rows, batch_size_global=1024, num_streams=64, window_rows=window_rows, seed=0)
        batches = order.epoch_batches(0) // 64
        counted = np.mean(
            [(np.unique(batch, return_counts=True)[1] ** 2).sum() / 1024 - 1 for batch in batches]
        )
        found.append(num_mates(rows, 1024, window_rows=window_rows))
        assert found[-1] == pytest.approx(counted, rel=0.15)
    assert found[0] > 1.5 * found[1] > 2 * found[2] > 2 * num_mates_of_all(rows, 1024)
    assert num_mates_of_all(rows, 1024) == pytest.approx(1023 * 63 / (64 * 400 - 1))
    # all streams read from one row group
    assert num_mates(np.array([5000]), 256) == 255

    url = write_shards(tmp_path / "data", [encoded(number) for number in range(1200)], rows_per_group=100)
    report = check(url, max_rows=10)
    assert list(report["row_groups"]["mates"]) == ["256", "1024"]
    assert "a row meets" not in printed(report)  # the window holds all rows
    report["row_groups"]["mates"]["256"]["window"] = 77.5
    assert "in a batch of 256, 1024 a row meets 77.5, " in printed(report)
