"""What real sources hold that no example shows: odd names, masks beside images, damaged annotations
and tars, hostile files.
"""

import json
import os

import numpy as np
import pytest
from PIL import Image

from cluster import storage
from cluster.errors import UserError
from pretrain.data.packing.importing import ImportOptions, import_images
from pretrain.data.packing.sources import kind_of, list_records
from pretrain.data.packing.sources.table_roles import Columns
from tests.pretrain.shards import encoded
from tests.pretrain.source_files import make_tar, packed, quarantined, voc, write


def json_lines(path, *rows):
    return write(
        path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode("utf-8", "surrogatepass")
    )


def listed(src, **options):
    return {record.path: record for record in list_records(str(src), **options).records}


def test_names_and_texts_that_utf8_cannot_hold(tmp_path):
    (tmp_path / "src").mkdir()
    with open(os.fsencode(tmp_path / "src") + b"/caf\xe9.png", "wb") as file:  # as an old Windows wrote it
        file.write(encoded(1))
    write(tmp_path / "src" / "plain.png", encoded(2))
    rows = packed(tmp_path / "src", tmp_path / "folder")
    assert {path: row["image"] for path, row in rows.items()} == {
        "caf?.png": encoded(1),
        "plain.png": encoded(2),
    }

    table = write(
        tmp_path / "src" / "t.jsonl", r'{"path": "plain.png", "label": "a\ud800", "caption": ["\udc00 b"]}'
    )
    (row,) = packed(table, tmp_path / "table").values()
    assert (row["label"], row["captions"]) == ("a?", ["? b"])


def test_paths_that_are_none(tmp_path):
    write(tmp_path / "a.png", encoded(1))
    bad = [
        "a\0.png",
        "http://[half/x.png",
        "reference://x",
        "zip://x.png::http://y/z.zip",
        "\ud800.png",
        "x" * 5000,
        7,
    ]
    table = write(tmp_path / "t.jsonl", "\n".join(json.dumps({"path": path}) for path in [*bad, "a.png"]))
    assert list(packed(table, tmp_path / "out")) == ["a.png"]
    set_aside = quarantined(tmp_path / "out")
    assert len(set_aside) == len(bad)
    assert (
        "not a URL of" in set_aside[f"{table}, line 3"] and "no path, but 7" in set_aside[f"{table}, line 7"]
    )


def test_voc_with_masks_of_the_same_names(tmp_path):
    for number, folder in enumerate(("JPEGImages", "SegmentationClass", "SegmentationObject")):
        write(tmp_path / "src" / folder / "a.png", encoded(number))
    write(
        tmp_path / "src" / "Annotations" / "a.xml", voc("a.png", ("cell", 1, 2, 5, 7), ("cell", 3, 3, 2, 2))
    )
    listing = list_records(str(tmp_path / "src"))
    (record,) = listing.records
    assert record.path == "JPEGImages/a.png" and record.objects.bbox == ((1, 2, 4, 5), (3, 3, -1, -1))
    assert any(
        "1 boxes without an area are kept as they are (first: JPEGImages/a.png" in n for n in listing.notes
    )


def test_voc_and_yolo_side_by_side_are_told_by_their_look(tmp_path):
    write(tmp_path / "voc" / "a.jpg", encoded(0))
    write(tmp_path / "voc" / "a.jpeg", encoded(1))
    write(tmp_path / "voc" / "a.xml", voc("a.jpeg", ("x", 0, 0, 1, 1)))
    assert kind_of(str(tmp_path / "voc")) == "voc" and list(listed(tmp_path / "voc")) == ["a.jpeg"]
    write(tmp_path / "voc" / "a.xml", voc("a.gif"))
    with pytest.raises(UserError, match=r"2 images \(a\.jpeg, a\.jpg\) of its name"):
        list_records(str(tmp_path / "voc"))

    write(tmp_path / "yolo" / "a.jpg", encoded(0))
    write(tmp_path / "yolo" / "a.txt", "1 0.5 0.5 1 1\n")
    write(tmp_path / "yolo" / "classes.txt", "cat\ndog\n")
    assert kind_of(str(tmp_path / "yolo")) == "yolo"
    assert listed(tmp_path / "yolo")["a.jpg"].objects.category == ("dog",)


def test_yolo_by_its_yaml_and_labels_without_images(tmp_path):
    write(tmp_path / "train" / "images" / "a.png", encoded(0))
    write(tmp_path / "train" / "labels" / "a.txt", "0 0.5 0.5 1 1\n")
    write(tmp_path / "train" / "labels" / "gone.txt", "0 0.5 0.5 1 1\n")
    yaml = write(tmp_path / "data.yaml", "train: ../train/images\nnames: [wheel]\n")
    listing = list_records(str(yaml))
    assert [record.objects.category for record in listing.records] == [("wheel",)]
    assert listing.problems == [("train/labels/gone.txt", "no image of its name")]
    # a small file that would be 10**9 words if aliases were followed
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
    )
    for text in (bomb + "names: [*a9]\n", "names: [no, yes]\n", "names: {a: b}\n", "names: 3\n"):
        write(yaml, text)
        with pytest.raises(UserError, match=r"data\.yaml: `names` must be a list of class names"):
            list_records(str(yaml))


def test_coco_crowds_urls_and_ids_that_come_twice(tmp_path):
    write(tmp_path / "a.png", encoded(0))
    tree = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "s3://bucket/b.png"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "iscrowd": 1}] * 2,
    }
    file = write(tmp_path / "coco.json", json.dumps(tree))
    listing = list_records(str(file))
    assert [record.url for record in listing.records] == [str(tmp_path / "a.png"), "s3://bucket/b.png"]
    assert "2 crowd regions are left out" in listing.notes
    tree["images"][1]["id"] = 1
    write(file, json.dumps(tree))
    with pytest.raises(UserError, match=r"coco\.json: the id 1 stands for 2 of `images`"):
        list_records(str(file))


def test_tables_as_people_write_them(tmp_path):
    semicolons = write(tmp_path / "t.csv", "Pfad;label;tags\na.png;cat;red, big\n")
    record = listed(semicolons, columns=Columns(path="Pfad"))["a.png"]
    assert (record.label, record.labels) == ("cat", ("red", "big"))
    line = json_lines(
        tmp_path / "t.jsonl", {"path": "a.png", "caption": "one line\u2028still the same\x85and this"}
    )
    assert listed(line)["a.png"].captions == ("one line\u2028still the same\x85and this",)
    boxes = json_lines(
        tmp_path / "b.jsonl",
        {"file_name": "a.png", "objects": {"bbox": [[0, 1, 2, 3]], "categories": ["cat"]}},
        {"file_name": "b.png", "objects": {"bbox": [[0, 1, 2]], "categories": ["cat"]}},
        {"file_name": "c.png", "objects": {"bbox": [], "categories": ["cat"]}},
        {"file_name": "d.png", "objects": [1]},
    )
    listing = list_records(str(boxes))
    assert [record.objects.bbox for record in listing.records] == [((0, 1, 2, 3),)]
    assert [(place.rpartition(", ")[2], reason.split(",")[0]) for place, reason in listing.problems] == [
        ("line 2", "objects.bbox[0] must be four numbers"),
        ("line 3", "objects needs the lists bbox and category"),
        ("line 4", "objects must be {bbox: [...]"),
    ]


def test_what_is_said_of_damaged_annotations(tmp_path):
    def said(src, **options):
        try:
            return "; ".join(": ".join(problem) for problem in list_records(str(src), **options).problems)
        except UserError as error:
            return str(error)

    write(tmp_path / "voc" / "a.png", encoded(0))
    for text, place, reason in (
        ("<annotation>\n\n<obj", "a.xml, line 3", "not valid XML: unclosed token (column 0)"),
        ("<annotation>\n<object/></annotation>", "a.xml", "object 1 (line 2) has no name or no bndbox"),
        (
            voc("a.png", ("x", 1, 2, "", 4)),
            "a.xml",
            "object 1 (line 1) has a bndbox that is not four numbers",
        ),
        ("<html/>", "a.xml", "its root is <html>"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "/etc/passwd">]><annotation/>', "a.xml", "entities"),
    ):
        write(tmp_path / "voc" / "a.xml", text)
        line = said(tmp_path / "voc")
        assert f"(first: {place}: " in line and reason in line
    for text, words in (
        ('path,label\na.png,x\n"b.png,y\nc.png,z\n', "t.csv, line 3: not valid CSV: unexpected end of data"),
        ('path,label\n"a\nb.png",y\n', "t.csv, line 2: column 'path' holds no path, but 'a\\nb.png'"),
    ):
        assert words in said(write(tmp_path / "t.csv", text))
    assert "is an archive that cannot be read in place" in said(write(tmp_path / "t.tar.gz", b"x"))
    assert "give the annotation file (there is none in it)" in said(tmp_path / "voc", kind="coco")
    assert "nor a folder with a metadata.jsonl or metadata.csv" in said(tmp_path / "voc", kind="table")


def test_folders_with_one_annotation_file(tmp_path):
    write(tmp_path / "hf" / "a.png", encoded(0))
    write(tmp_path / "hf" / "metadata.csv", "file_name,text\na.png,A cat\n")
    assert listed(tmp_path / "hf")["a.png"].captions == ("A cat",)
    tree = {
        "images": [{"id": 0, "file_name": "a.png"}],
        "annotations": [{"image_id": 0, "caption": "A dog"}],
    }
    write(tmp_path / "coco" / "a.png", encoded(0))
    write(tmp_path / "coco" / "_annotations.coco.json", json.dumps(tree))
    assert listed(tmp_path / "coco")["a.png"].captions == ("A dog",)


def test_tars_with_equal_names_masks_and_json(tmp_path):
    sample = {"label": 3, "labels": ["a", "b"], "objects": {"bbox": [[1, 2, 3, 4]], "category": ["x"]}}
    for split, number in (("train", 1), ("test", 2)):
        files = {"0.mask.png": encoded(9), "0.PNG": encoded(number), "0.json": json.dumps(sample).encode()}
        files |= {"1.png": encoded(number + 10), "1.json": b'{"objects": 3}'}
        make_tar(tmp_path / "src" / split / "000.tar", files)
    rows = packed(tmp_path / "src", tmp_path / "out", kind="tar")
    # images whose boxes cannot be read are set aside: stored without any they would pass for background
    assert {path: row["image"] for path, row in rows.items()} == {
        "train/000.tar/0.PNG": encoded(1),
        "test/000.tar/0.PNG": encoded(2),
    }
    first = rows["train/000.tar/0.PNG"]
    assert (first["label"], first["labels"]) == ("3", ["a", "b"])
    assert first["objects"] == {"bbox": [[1, 2, 3, 4]], "category": ["x"]}
    reasons = quarantined(tmp_path / "out")
    assert "0.mask.png is a second image" in reasons["train/000.tar/0.PNG"]
    assert "objects must be" in reasons["train/000.tar/1.json"]


def test_a_cut_tar_and_one_in_a_store(tmp_path, s3_server):
    tar = make_tar(tmp_path / "a.tar", {f"{n}.png": encoded(n) for n in range(4)})
    storage.write_bytes(f"{s3_server.url}/tars/a.tar", tar.read_bytes())
    rows = packed(f"{s3_server.url}/tars/a.tar", tmp_path / "out")
    assert {path: row["image"] for path, row in rows.items()} == {
        f"a.tar/{n}.png": encoded(n) for n in range(4)
    }
    tar.write_bytes(tar.read_bytes()[:1700])
    with pytest.raises(UserError, match=r"a\.tar is not a plain tar, or it is damaged"):
        list_records(str(tar))


def test_torchvision_sets_of_files_are_stored_as_they_are(tmp_path):
    folder = tmp_path / "rendered-sst2"
    photos = {
        (split, side): encoded(number)
        for number, (split, side) in enumerate(
            (split, side) for split in ("train", "test") for side in ("negative", "positive")
        )
    }
    for (split, side), data in photos.items():
        write(folder / split / side / "0.png", data)
    for name, split in (("RenderedSST2", "train"), ("RenderedSST2:test", "test")):
        rows = packed(f"torchvision:{name}", tmp_path / split, root=str(tmp_path))
        assert {path: (row["label"], row["image"]) for path, row in rows.items()} == {
            f"{n}.png": (side, photos[split, side]) for n, side in enumerate(("negative", "positive"))
        }


def test_every_column_opens_in_datasets_and_in_pandas(tmp_path):
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    rows = {}
    for number in range(12):
        write(tmp_path / "src" / f"{number}.png", encoded(number))
        rows[f"{number}.png"] = {
            "label": "ab"[number % 2],
            "labels": ["x", "y"][: number % 3],
            "objects": {"bbox": [[1.0, 2.0, 3.0, 4.5]] * (number % 2), "category": ["w"] * (number % 2)},
            "captions": [f"image {number}", "another"][: number % 3],
        }
    table = json_lines(tmp_path / "src" / "t.jsonl", *({"path": path, **row} for path, row in rows.items()))
    write(table, table.read_bytes() + b'\n{"path": "gone.png"}')
    dest = tmp_path / "out"
    import_images(str(table), str(dest), ImportOptions(validation_fraction=0.4), show_progress=False)
    assert sorted(path.name for path in dest.iterdir()) == [
        "_import.json",
        "_quarantine.jsonl",
        "train",
        "validation",
    ]

    opened = datasets.load_dataset(
        str(dest), cache_dir=str(tmp_path / "hf")
    )  # the folder alone, with its splits
    assert set(opened) == {"train", "validation"}
    seen = {}
    for split in opened.values():
        assert isinstance(split.features["image"], datasets.Image)
        paths = [
            image["path"] for image in split.cast_column("image", datasets.Image(decode=False))["image"]
        ]
        for path, row in zip(paths, split, strict=True):
            assert (np.asarray(row.pop("image")) == np.asarray(Image.open(tmp_path / "src" / path))).all()
            seen[path] = row
    assert seen == rows

    frame = pandas.read_parquet(dest)
    assert len(frame) == len(rows)
    for _, row in frame.iterrows():
        expected = rows[row["image"]["path"]]
        assert row["image"]["bytes"] == (tmp_path / "src" / row["image"]["path"]).read_bytes()
        assert row["label"] == expected["label"] and list(row["labels"]) == expected["labels"]
        assert [list(box) for box in row["objects"]["bbox"]] == expected["objects"]["bbox"]
        assert list(row["captions"]) == expected["captions"]
