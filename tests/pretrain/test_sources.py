"""A round trip for every kind of source: the same images, labels,
boxes and captions come back from the shards.
"""

import io
import json
import struct
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from cluster import storage
from cluster.errors import UserError
from pretrain.data.packing.sources import kind_of, list_records
from pretrain.data.packing.sources.table_roles import Columns
from tests.pretrain.shards import encoded
from tests.pretrain.source_files import json_values, packed, quarantined, voc, write


def test_coco_boxes(tmp_path):
    tree = {
        "images": [
            {"id": 1, "file_name": "a.png"},
            {"id": 2, "file_name": "sub/b.png"},
            {"id": 3, "file_name": "c.png"},
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]},
            {"image_id": 1, "category_id": 9, "bbox": [0, 0, 5.5, 2]},
            {"image_id": 2, "category_id": 9, "bbox": [2, 2, 2, 2]},
            {"image_id": 2, "category_id": 9, "bbox": [0, 0, 9, 9], "iscrowd": 1},
            {"image_id": 99, "category_id": 9, "bbox": [0, 0, 9, 9]},
            {"image_id": 2, "category_id": 8, "bbox": [0, 0, 9, 9]},
            {"image_id": 2, "category_id": 9, "bbox": [0, 0, "x", 9]},
        ],
    }
    for number, name in enumerate(("a.png", "sub/b.png", "c.png")):
        write(tmp_path / "src" / "images" / name, encoded(number))
    file = write(tmp_path / "src" / "annotations.json", json.dumps(tree))
    rows = packed(file, tmp_path / "out")
    assert {path: row["objects"] for path, row in rows.items()} == {
        "a.png": {"bbox": [[1, 2, 3, 4], [0, 0, 5.5, 2]], "category": ["cat", "dog"]},
        "sub/b.png": {"bbox": [[2, 2, 2, 2]], "category": ["dog"]},
        "c.png": {"bbox": [], "category": []},
    }
    assert all(
        rows[name]["image"] == encoded(number) for number, name in enumerate(("a.png", "sub/b.png", "c.png"))
    )
    reasons = " ".join(quarantined(tmp_path / "out").values())
    assert "image_id 99 is not in `images`" in reasons and "category_id 8" in reasons and "'x'" in reasons


def test_coco_captions(tmp_path):
    tree = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"image_id": 1, "caption": "A cat."}, {"image_id": 1, "caption": "Ein Kätzchen."}],
    }
    write(tmp_path / "src" / "a.png", encoded(0))
    rows = packed(write(tmp_path / "src" / "captions.json", json.dumps(tree)), tmp_path / "out")
    assert rows["a.png"]["captions"] == ["A cat.", "Ein Kätzchen."]


def test_voc(tmp_path):
    src = tmp_path / "src"
    for number, name in enumerate(("a", "b", "c")):
        write(src / "JPEGImages" / f"{name}.png", encoded(number))
    write(src / "Annotations" / "a.xml", voc("a.png", ("cell", 1, 2, 5, 7), ("cell", 0, 0, 0, 0)))
    write(src / "Annotations" / "b.xml", voc("b.png"))
    write(src / "Annotations" / "bad.xml", "<annotation><object></annotation>")
    write(src / "Annotations" / "gone.xml", voc("gone.png"))
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]>'
    bomb += "<annotation><filename>&c;</filename></annotation>"
    write(src / "Annotations" / "c.xml", bomb)
    rows = packed(src, tmp_path / "out")
    assert {path: row["objects"] for path, row in rows.items()} == {
        "JPEGImages/a.png": {"bbox": [[1, 2, 4, 5], [0, 0, 0, 0]], "category": ["cell", "cell"]},
        "JPEGImages/b.png": {"bbox": [], "category": []},
    }
    assert set(quarantined(tmp_path / "out")) == {
        f"Annotations/{name}" for name in ("bad.xml, line 1", "gone.xml", "c.xml")
    }


@pytest.mark.parametrize("names", ["data.yaml", "classes.txt", None])
def test_yolo(tmp_path, names):
    src = tmp_path / "src"
    write(src / "images" / "train" / "a.png", encoded(0, size=(20, 10)))
    write(src / "images" / "train" / "b.png", encoded(1, size=(20, 10)))
    write(src / "labels" / "train" / "a.txt", "0 0.5 0.5 0.5 1.0\n1 0.25 0.5 0.1 0.2\nnonsense\n")
    if names == "data.yaml":
        write(src / names, "names: {0: red, 1: blue}\n")
    elif names:
        write(src / names, "red\nblue\n")
    rows = packed(src, tmp_path / "out")
    objects = rows["images/train/a.png"]["objects"]
    assert objects["category"] == (["red", "blue"] if names else ["0", "1"])
    assert objects["bbox"][0] == [5, 0, 10, 10] and objects["bbox"][1] == pytest.approx([4, 4, 2, 2])
    assert rows["images/train/b.png"]["objects"] == {"bbox": [], "category": []}
    assert list(quarantined(tmp_path / "out")) == ["labels/train/a.txt, line 3"]


def test_tables(tmp_path):
    src = tmp_path / "src"
    for number in range(3):
        write(src / "photos" / f"{number}.png", encoded(number))
    table = write(
        src / "t.csv",
        'path,label,caption\nphotos/0.png,cat,"One, two"\n'
        "photos/1.png,dog,\nphotos/0.png,cat,Three\n,dog,x\n",
    )
    rows = packed(table, tmp_path / "csv")
    assert {path: (row["label"], row["captions"]) for path, row in rows.items()} == {
        "photos/0.png": ("cat", ["One, two", "Three"]),
        "photos/1.png": ("dog", []),
    }
    assert any("line 5" in place for place in quarantined(tmp_path / "csv"))

    lines = [
        {"file_name": "photos/0.png", "tags": ["a", "b"], "text": ["eins", "zwei"]},
        {"file_name": str(src / "photos" / "2.png"), "tags": [], "text": "drei"},
        {"file_name": "photos/gone.png", "tags": ["c"], "text": ""},
    ]
    table = write(src / "t.jsonl", "\n".join(map(json.dumps, lines)))
    rows = packed(table, tmp_path / "jsonl")
    assert rows["photos/0.png"]["labels"] == ["a", "b"] and rows["photos/0.png"]["captions"] == [
        "eins",
        "zwei",
    ]
    assert rows[str(src / "photos" / "2.png")]["image"] == encoded(2)
    assert "cannot be read" in quarantined(tmp_path / "jsonl")["photos/gone.png"]


def test_images_listed_by_url(tmp_path, s3_server):
    for number in range(3):
        storage.write_bytes(f"{s3_server.url}/photos/{number}.png", encoded(number))
    text = "image_url,label\n" + "".join(f"{s3_server.url}/photos/{n}.png,class {n}\n" for n in range(3))
    rows = packed(write(tmp_path / "t.csv", text), tmp_path / "out")
    assert {row["label"]: row["image"] for row in rows.values()} == {
        f"class {n}": encoded(n) for n in range(3)
    }


def test_tars(tmp_path):
    for shard in range(2):
        path = tmp_path / "src" / f"{shard:03d}.tar"
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as tar:
            files = {
                "x/0001.png": encoded(shard * 10 + 1),
                "x/0001.cls": b"3",
                "x/0001.txt": b"Ein Bild",
                "0002.png": encoded(shard * 10 + 2),
                "0002.json": json.dumps({"label": "cat", "caption": "a cat"}).encode(),
                "../../evil.png": encoded(shard * 10 + 3),
                "alone.cls": b"5",
            }
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            for name, kind in (("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)):
                info = tarfile.TarInfo(name)  # to an image outside, which must not be read either
                info.type, info.linkname = kind, str(tmp_path / "secret.png")
                tar.addfile(info)
    rows = packed(tmp_path / "src", tmp_path / "out")
    assert len(rows) == 6  # links are no images
    first = rows["001.tar/x/0001.png"]
    assert (first["image"], first["label"], first["captions"]) == (encoded(11), "3", ["Ein Bild"])
    assert rows["000.tar/0002.png"]["label"] == "cat" and rows["000.tar/0002.png"]["captions"] == ["a cat"]
    assert quarantined(tmp_path / "out")["001.tar/alone"] == "a sample without an image"
    assert {path.name for path in tmp_path.iterdir()} == {
        "src",
        "out",
    }  # nothing was written where a member points


def test_torchvision(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(np.uint8)
    raw = tmp_path / "data" / "MNIST" / "raw"
    for part in ("train", "t10k"):  # the idx format of http://yann.lecun.com/exdb/mnist
        write(raw / f"{part}-images-idx3-ubyte", struct.pack(">4i", 2051, 5, 28, 28) + pixels.tobytes())
        write(raw / f"{part}-labels-idx1-ubyte", struct.pack(">2i", 2049, 5) + bytes([3, 1, 4, 1, 5]))
    rows = packed("torchvision:MNIST:test", tmp_path / "out", root=str(tmp_path / "data"))
    assert [rows[f"{n}.png"]["label"] for n in range(5)] == [
        "3 - three",
        "1 - one",
        "4 - four",
        "1 - one",
        "5 - five",
    ]
    for number in range(5):
        np.testing.assert_array_equal(Image.open(io.BytesIO(rows[f"{number}.png"]["image"])), pixels[number])
    with pytest.raises(UserError, match="did you mean 'CIFAR10'"):
        list_records("torchvision:CIFAR11")
    with pytest.raises(UserError, match="--download"):
        list_records("torchvision:CIFAR10", root=str(tmp_path))


def test_kinds_are_told_by_their_look(tmp_path):
    assert (
        kind_of("s3://b/x.jsonl") == "table"
        and kind_of("x/instances.json") == "coco"
        and kind_of("a.tar") == "tar"
    )
    (tmp_path / "voc" / "Annotations").mkdir(parents=True)
    (tmp_path / "voc" / "JPEGImages").mkdir()
    assert kind_of(str(tmp_path / "voc")) == "voc" and kind_of(str(tmp_path)) == "folder"
    with pytest.raises(UserError, match="did you mean 'yolo'"):
        list_records(str(tmp_path), kind="yolp")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[1, 2", "is not valid JSON"),
        ("a.json", "[]", "is not a COCO json"),
        ("a.json", b"\xff\xfe", "is not UTF-8"),
        ("a.json", '{"images": [{"id": 1, "file_name": "gone.png"}]}', "--images FOLDER"),
        ("a.json", '{"images": [], "categories": [{"id": 1}]}', r"categories\[0\] needs"),
        ("a.csv", "colour,size\nred,3\n", "no column of paths"),
        ("a.csv", "", "has no rows"),
        ("a.jsonl", "[1]\nnope\n", "has no rows"),
        ("a.tar", b"hello" * 300, "is not a plain tar"),
    ],
)
def test_sources_that_cannot_be_read(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        list_records(str(write(tmp_path / name, content)))


@pytest.mark.parametrize(("line", "reason"), [("[1]", "must be an object"), ("nope", "not valid JSON")])
def test_a_line_that_cannot_be_read_costs_itself(tmp_path, line, reason):
    listing = list_records(
        str(write(tmp_path / "a.jsonl", f'{{"path": "x.png"}}\n{line}\n{{"path": "y.png"}}\n'))
    )
    assert [record.path for record in listing.records] == ["x.png", "y.png"]
    ((place, said),) = listing.problems
    assert place.endswith("a.jsonl, line 2") and reason in said


def test_a_column_that_is_not_there(tmp_path):
    table = write(tmp_path / "t.csv", "path,breed\na.png,x\n")
    with pytest.raises(UserError, match=r"no column 'bread', as --label-column says; did you mean 'breed'"):
        list_records(str(table), columns=Columns(label="bread"))


coco_like = st.fixed_dictionaries(
    {},
    optional={
        "images": json_values
        | st.lists(st.dictionaries(st.sampled_from(["id", "file_name"]), json_values), max_size=3),
        "categories": json_values
        | st.lists(st.dictionaries(st.sampled_from(["id", "name"]), json_values), max_size=3),
        "annotations": json_values
        | st.lists(
            st.dictionaries(
                st.sampled_from(["image_id", "category_id", "bbox", "caption", "iscrowd"]), json_values
            ),
            max_size=3,
        ),
    },
)
fuzz = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def list_or_refuse(path):
    """Whatever is in a file: records, or one clear error."""
    try:
        assert list_records(str(path)).records
    except UserError as error:
        assert str(error)


@fuzz
@given(coco_like)
def test_any_coco(tmp_path, tree):
    list_or_refuse(write(tmp_path / "fuzz.json", json.dumps(tree)))


@fuzz
@example(b"path\n\x00\\\x00")
@given(
    st.binary(max_size=200)
    | st.text(max_size=100).map(lambda text: ("path,label\n" + text).encode("utf-8", "replace"))
)
def test_any_table_and_tar(tmp_path, data):
    for name in ("fuzz.csv", "fuzz.jsonl", "fuzz.tar", "fuzz.json"):
        list_or_refuse(write(tmp_path / name, data))


@pytest.mark.parametrize("path", ["\0\\\0", "x" * 5000 + "/1.jpg", "a/\n"])
def test_a_table_of_what_can_be_no_path(tmp_path, path):
    table = write(tmp_path / "odd.json", json.dumps([{"path": path, "label": "a"}]))
    with pytest.raises(UserError):
        list_records(str(table))


@fuzz
@given(st.lists(json_values, max_size=4))
def test_any_json_lines(tmp_path, rows):
    rows = [{"path": "a.png", "label": row, "caption": row, "objects": row} for row in rows] + rows
    list_or_refuse(write(tmp_path / "fuzz.jsonl", "\n".join(map(json.dumps, rows))))


@fuzz
@given(st.binary(max_size=100), st.text(max_size=60))
def test_any_annotation_beside_an_image(tmp_path, data, text):
    write(tmp_path / "JPEGImages" / "a.png", encoded(0))
    write(tmp_path / "Annotations" / "a.xml", data)
    list_or_refuse(tmp_path)
    write(
        tmp_path / "Annotations" / "a.xml",
        f"<annotation><object><name>{text}</name></object></annotation>".encode("utf-8", "replace"),
    )
    list_or_refuse(tmp_path)
    yolo = tmp_path / "yolo"
    write(yolo / "images" / "a.png", encoded(0))
    write(yolo / "labels" / "a.txt", data)
    write(yolo / "data.yaml", text.encode("utf-8", "replace"))
    list_or_refuse(yolo)
