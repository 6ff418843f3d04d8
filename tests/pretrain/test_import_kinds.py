"""Layouts, faults and odd names as people have them: each kind is read, or said;
nothing is lost without a word.
"""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import UserError
from pretrain.data.packing.sources import kind_of, list_records
from pretrain.data.packing.sources.texts import captions_in, decode_text, id_key, label_of, list_in
from tests.pretrain.annotated import Scene, block_in, coco, put
from tests.pretrain.shards import encoded
from tests.pretrain.source_files import imported, lines_of, photos


def test_every_file_has_a_fate(tmp_path):
    src = tmp_path / "src"
    photos(src, "cat/_DSC0001.JPG", "cat/_MG_0002.jpg", "dog/a.jpe", "dog/9f86d081884c7d65", "dog/b.jfif")
    put(src / "dog" / "c.heic", b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + b"\0" * 99)
    put(src / "dog" / "d.jxl", b"\xff\x0a" + b"0" * 50)
    put(src / "cat" / ".hidden.jpg", encoded(1))
    put(src / "cat" / "notes.txt", "of no image")
    (src / "owl").mkdir()
    (src / "cat" / "gone.png").symlink_to(tmp_path / "never")
    summary, rows, _ = imported(src, tmp_path / "out", max_set_aside=0.5)
    assert {path: row["label"] for path, row in rows.items()} == {
        "cat/_DSC0001.JPG": "cat", "cat/_MG_0002.jpg": "cat", "dog/a.jpe": "dog",
        "dog/9f86d081884c7d65": "dog", "dog/b.jfif": "dog",
    }  # fmt: skip
    assert [line["path"] for line in lines_of(tmp_path / "out", "_quarantine.jsonl")] == ["dog/c.heic"]
    fates = {line["path"]: line["fate"] for line in lines_of(tmp_path / "out", "_files.jsonl")}
    assert set(fates) == {"dog/d.jxl", "cat/.hidden.jpg", "cat/notes.txt", "cat/gone.png"}
    assert "not read (.jxl)" in fates["dog/d.jxl"] and "broken link" in fates["cat/gone.png"]
    assert summary["ledger"]["files"] == 10 and any("owl" in note for note in summary["notes"])
    assert any(".jxl" in note for note in summary["notes"])


def test_too_many_set_aside_is_no_success(tmp_path):
    photos(tmp_path / "src", *(f"{number}.png" for number in range(9)))
    put(tmp_path / "src" / "bad.png", b"nothing")
    summary, rows, _ = imported(tmp_path / "src", tmp_path / "out")
    assert len(rows) == 9 and "1 of 10 images were set aside" in summary["stopped"]
    assert imported(tmp_path / "src", tmp_path / "more", max_set_aside=0.1)[0]["stopped"] is None


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (["train/1.png", "test/2.png"], {"train", "test"}),
        (["train/cat/1.png", "train/dog/2.png", "val/cat/3.png"], {"train", "validation"}),
        (["set/images/train2017/1.png", "set/images/val2017/2.png"], {"train", "validation"}),
        (["car/1.png", "plane/2.png", "train/3.png"], {None}),
        (["train/1.png", "training/2.png", "valid/3.png", "dev/4.png"], {"train", "validation"}),
    ],
)
def test_splits_are_splits(tmp_path, paths, splits):
    photos(tmp_path, *paths)
    records = list_records(str(tmp_path)).records
    assert {record.split for record in records} == splits
    labels = {record.label for record in records}
    assert not labels & {"test", "val", "valid", "train2017"} and (("train" in labels) == (splits == {None}))


def test_splits_go_to_their_folders_or_one_is_chosen(tmp_path):
    photos(tmp_path / "src", "train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "train/dog/4.png")
    _, _, splits = imported(tmp_path / "src", tmp_path / "out")
    assert splits["test"] == {"test/cat/3.png"} and len(splits["train"]) == 3
    summary, rows, _ = imported(tmp_path / "src", tmp_path / "one", split="test")
    assert list(rows) == ["test/cat/3.png"] and any(
        "3 images of other splits" in note for note in summary["notes"]
    )
    assert set(imported(tmp_path / "src", tmp_path / "all", split="none")[2]) == {"all"}
    photos(tmp_path / "src", "extra/cat/5.png")
    with pytest.raises(UserError, match=r"also extra; --split train"):
        list_records(str(tmp_path / "src"))


def test_two_readings_are_for_the_user_to_choose(tmp_path):
    coco(tmp_path, [Scene("a.png", (40, 30), (2, 3, 9, 9))], "upright")
    put(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.5 0.5\n")
    with pytest.raises(UserError, match=r"in 2 ways.*--kind coco: .*--kind yolo: "):
        kind_of(str(tmp_path))
    assert list_records(str(tmp_path), kind="yolo").records


def test_a_yaml_says_names_and_splits(tmp_path):
    for split in ("train", "valid", "old"):
        photos(tmp_path / "set" / split / "images", f"{split}.png")
        put(tmp_path / "set" / split / "labels" / f"{split}.TXT", "1.0\t0.5 0.5 0.5 0.5\r\n")
    put(
        tmp_path / "set" / "my.yaml",
        "train: ../train/images\nval: valid/images\nnames: {'0': cat, '1': dog}\n",
    )
    listing = list_records(str(tmp_path / "set" / "my.yaml"))
    assert {record.split for record in listing.records} == {"train", "validation"} and len(
        listing.records
    ) == 2
    assert all(record.objects.category == ("dog",) for record in listing.records)
    assert any("1 images belong to no split" in note for note in listing.notes)
    (tmp_path / "set" / "my.yaml").rename(tmp_path / "set" / "data.yaml")
    assert list_records(str(tmp_path / "set" / "train")).records[0].objects.category == ("dog",)


def test_lines_of_yolo(tmp_path):
    lines = {
        "0 0.2 0.2 0.6 0.2 0.6 0.5 0.2 0.5": [0.2, 0.2, 0.4, 0.3],  # a polygon, or a turned box
        "0 0.5 0.5 0.5 0.5 0.9": [0.25, 0.25, 0.5, 0.5],  # with confidence
        "1.000000e+00,0.5,0.5,0.5,0.5": [0.25, 0.25, 0.5, 0.5],
        "0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5": [0.25, 0.25, 0.5, 0.5],  # twice
    }
    for number, (line, box) in enumerate(lines.items()):
        folder = tmp_path / str(number)
        photos(folder, "a.png", "a b.png")
        put(folder / "a.txt", (line + "\n").encode("utf-16" if number % 2 else "utf-8-sig"))
        put(folder / "classes.txt", "cat\n\ndog\n" if "," not in line else "cat\ndog\n")
        first = list_records(str(folder), kind="yolo").records[1]
        assert first.objects.bbox == (pytest.approx(box),) and first.objects.category[0] in ("cat", "dog")
    put(folder / "a.txt", "0 32 24 20 10\n")
    with pytest.raises(UserError, match="--boxes cxcywh"):
        list_records(str(folder), kind="yolo")
    (pixels,) = [
        one for one in list_records(str(folder), kind="yolo", boxes="cxcywh").records if one.objects.bbox
    ]
    assert pixels.objects.bbox == ((22, 19, 20, 10),) and not pixels.relative_boxes


def test_one_bad_box_costs_itself_and_all_bad_ones_the_image(tmp_path):
    photos(tmp_path / "src" / "images", "good.png", "half.png", "lost.png", "none.png")
    put(tmp_path / "src" / "data.yaml", "names: [cat]\n")
    for name, lines in (
        ("good", "0 .5 .5 .5 .5"),
        ("half", "0 .5 .5 .5 .5\n7 .5 .5 .5 .5"),
        ("lost", "7 .5 .5 .5 .5"),
    ):
        put(tmp_path / "src" / "labels" / f"{name}.txt", lines)
    summary, rows, _ = imported(tmp_path / "src", tmp_path / "out")
    assert {path.rpartition("/")[2]: len(row["objects"]["bbox"]) for path, row in rows.items()} == {
        "good.png": 1, "half.png": 1, "none.png": 0,
    }  # fmt: skip
    assert summary["stopped"] is not None
    assert any(
        "it would look like an image without any" in line["reason"]
        for line in lines_of(tmp_path / "out", "_quarantine.jsonl")
    )


def test_ids_and_categories_of_coco(tmp_path):
    photos(tmp_path, "images/a.png", "images/b.png")
    tree = {
        "images": [{"id": "1", "file_name": "images\\a.png"}, {"id": 2.0, "file_name": "b.png"}],
        "categories": [{"id": "7", "name": " cat "}, {"id": 8, "name": 0}],
        "annotations": [
            {
                "image_id": 1,
                "category_id": 7.0,
                "bbox": ["1", 2, 30, 20],
                "iscrowd": "0",
                "caption": "the left one",
            },
            {"image_id": "2", "category_id": 8, "segmentation": [[5, 6, 25, 6, 25, 16, 5, 16]]},
        ],
    }
    file = put(tmp_path / "a.json", json.dumps(tree))
    first, second = sorted(list_records(str(file)).records, key=lambda r: r.url)
    assert (
        first.objects.bbox == ((1, 2, 30, 20),)
        and first.objects.category == ("cat",)
        and first.captions == ("the left one",)
    )
    assert second.objects.bbox == ((5, 6, 20, 10),) and second.objects.category == ("0",)
    tree["categories"][1]["id"] = 7
    put(file, json.dumps(tree))
    with pytest.raises(UserError, match="stands for the categories 'cat' and '0'"):
        list_records(str(file))


def test_corners_and_shares_are_refused_with_the_option_that_reads_them(tmp_path):
    scenes = [Scene(f"{n}.png", (100, 80), (50 + n % 9, 40 + n % 7, 30, 20)) for n in range(24)]
    coco(tmp_path / "src", scenes, "upright")
    file = tmp_path / "src" / "annotations.json"
    tree = json.loads(file.read_text())
    for option, change in (
        ("xyxy", lambda x, y, w, h: [x, y, x + w, y + h]),
        ("fractions", lambda x, y, w, h: [x / 100, y / 80, w / 100, h / 80]),
    ):
        changed = [{**one, "bbox": change(*one["bbox"])} for one in tree["annotations"]]
        other = put(tmp_path / "src" / f"{option}.json", json.dumps({**tree, "annotations": changed}))
        with pytest.raises(UserError, match=f"--boxes {option}"):
            imported(other, tmp_path / "never")
        _, rows, _ = imported(other, tmp_path / option, boxes=option)
        for scene in scenes:
            assert rows[scene.name]["objects"]["bbox"][0] == pytest.approx(scene.block, abs=1e-3)


def test_tables_as_programs_write_them(tmp_path):
    photos(tmp_path, "0.png", "1.png", "2.png")
    for name, text, expected in (
        (
            "a.csv",
            "sep=;\nImage ; Label\n0.png; cat \n1.png;nan\n2.png;\n",
            {"0.png": "cat", "1.png": None, "2.png": None},
        ),
        ("b.csv", "image_id,label\n0,1\n1,2\n", {"0.png": "1", "1.png": "2"}),
        ("c.csv", "filename,cat,dog\n0.png,1,0\n1.png,0,1\n", {"0.png": "cat", "1.png": "dog"}),
        ("d.csv", "image\tlabel\n.\\0.png\tcat\n", {"0.png": "cat"}),
    ):
        listing = list_records(str(put(tmp_path / name, text)))
        assert {record.url.rpartition("/")[2]: record.label for record in listing.records} == expected, name
    listing = list_records(
        str(put(tmp_path / "e.csv", 'path,labels,captions\n0.png,"[\'a\', \'b\']","[""x"", ""y, z""]"\n'))
    )
    assert (listing.records[0].labels, listing.records[0].captions) == (("a", "b"), ("x", "y, z"))
    listing = list_records(str(put(tmp_path / "f.csv", "path,caption\n0.png,a cat, on a mat\n1.png,fine\n")))
    assert [record.captions for record in listing.records] == [
        ("fine",)
    ] and "more cells" in listing.problems[0][1]
    listing = list_records(
        str(put(tmp_path / "g.csv", "path,label,mood\n0.png,Stra\xdfe,x\n".encode("latin-1")))
    )
    assert listing.records[0].label == "Straße"
    assert any("cp1252" in note for note in listing.notes) and any("mood" in note for note in listing.notes)
    listing = list_records(
        str(
            put(
                tmp_path / "h.json",
                json.dumps([{"image": "0.png", "caption": {"en": "cat", "de": "Katze"}}]),
            )
        )
    )
    assert listing.records[0].captions == ("cat", "Katze")


def test_texts():
    assert list_in("['a', \"b's\"]") == ["a", "b's"] and list_in("[]") == [] and list_in("[a cat") is None
    assert list_in("['cat' 'dog']") == ["cat", "dog"] and list_in("a [b]") is None
    assert [id_key(value) for value in (1, 1.0, "1", "1.0", True, None, float("nan"))] == [
        "1",
        "1",
        "1",
        "1",
        None,
        None,
        None,
    ]
    assert [label_of(value) for value in (" cafe\u0301 ", "NaN", "", None, 1.5)] == [
        "café",
        None,
        None,
        None,
        "1.5",
    ]
    assert captions_in([{"raw": " a cat "}, "", {"en": "x"}]) == (["a cat", "x"], 0) and captions_in(
        3.5
    ) == ([], 1)
    assert decode_text("é".encode("utf-16"))[0] == "é" and decode_text(b"\xe9") == ("é", "cp1252")
    with pytest.raises(ValueError, match="not UTF-8"):
        decode_text(b"\xff\0\x01")


def test_images_as_they_are(tmp_path):
    src = tmp_path / "run [v2] #1"
    for name in ("a.jpg", "a.png", "a.jpeg"):
        put(src / name, encoded(3, size=(60, 50)))
    values = np.random.default_rng(0).integers(0, 4096, (40, 40)).astype(np.uint16)
    Image.fromarray(values).save(src / "xray.png")
    for form in ("AVIF", "PPM", "JPEG2000"):
        buffer = io.BytesIO()
        Scene("", (40, 30), (5, 6, 20, 12)).pixels().save(buffer, form)
        put(src / {"AVIF": "b.avif", "PPM": "c.ppm", "JPEG2000": "d.jp2"}[form], buffer.getvalue())
    dest = tmp_path / "out [x]"
    summary, rows, _ = imported(src, dest, options={"short_side": 20})
    assert {path for path in rows if path.startswith("a")} == {"a.jpg", "a.png.jpg", "a.jpeg.jpg"} and len(
        rows
    ) == 7
    grey = np.asarray(Image.open(io.BytesIO(rows["xray.jpg"]["image"]["bytes"])))
    assert 100 < grey.mean() < 155 and any("16-bit" in note for note in summary["notes"])
    assert block_in(Image.open(io.BytesIO(rows["b.jpg"]["image"]["bytes"])))[2] > 8


def test_equal_images_are_on_one_side(tmp_path):
    for number in range(30):
        for copy in "ab":
            put(tmp_path / "src" / f"{copy}{number}.png", encoded(number))
    summary, rows, splits = imported(
        tmp_path / "src", tmp_path / "out", options={"validation_fraction": 0.3}
    )
    sides = [{rows[path]["image"]["bytes"] for path in splits[split]} for split in ("train", "validation")]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 30
    assert any("bytes of one in the other split" in note for note in summary["notes"])


def test_parquet_is_told_to_be_a_data_set_already(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    for src in (tmp_path, tmp_path / "a.parquet"):
        with pytest.raises(UserError, match="a data set already"):
            list_records(str(src))
