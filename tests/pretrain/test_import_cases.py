"""Sources as people have them, through the command: what comes out, or what is said.
Each maker is a few small files; those of COCO, VOC, YOLO, labelme and CVAT are in `box_cases`.
"""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster import storage
from cluster.errors import run_command
from pretrain.data import __main__ as commands
from tests.pretrain.annotated import put
from tests.pretrain.box_cases import (
    BOX,
    CASES,
    DOG,
    NOTHING,
    YOLO,
    annotation,
    coco,
    comes_out,
    photos,
    refused,
)
from tests.pretrain.shards import encoded


@comes_out(
    {
        "0.png": {"label": "cat"},
        "5.png": {"label": "hündin"},
        "7.png": {"label": "two\nlines"},
        "8.png": {"label": "fox"},
        "1.png": None,
        "2.png": None,
        "3.png": None,
        "4.png": None,
        "6.png": None,
    },
    says=["image whose row was set aside", "line 3", "line 4", "line 5", "not UTF-8", "leads out"],
)
def table_of_bad_lines(src):
    photos(src, *(f"{n}.png" for n in range(9)))
    lines = [b"image,label", b"0.png,cat", b'1.png,"dog', b"2.png,a,b", b'3.png,"owl"x', b"4.png,\xff"]
    lines += ["5.png,hündin".encode(), b"../6.png,cat", b'7.png,"two', b'lines"', b"8.png,fox"]
    put(src / "t.csv", b"\n".join(lines))
    return ["--max-set-aside", "1"]


@comes_out(
    {"0.png": {"labels": ["cat"]}, "3.png": {"labels": ["dog", "cat"]}, "1.png": None},
    says=["line 2", "not valid JSON", "line 3", "must be an object"],
)
def lines_of_json(src):
    photos(src, *(f"{n}.png" for n in range(4)))
    rows = [
        '{"image": {"path": "0.png", "bytes": null}, "label": "cat"}',
        '{"image": "1.png", "lab',
        "[1]",
        '{"image": "3.png", "label": ["dog", "cat"]}',
    ]
    put(src / "t.jsonl", "\n".join(rows))
    return ["--max-set-aside", "1"]


@comes_out(
    {"1.png": {"objects": DOG}, "2.png": {"objects": NOTHING}},
    says=["scaled to its size"],
)
def table_of_boxes(src):
    photos(src, "1.png", "2.png")
    put(
        src / "_annotations.csv",
        "filename,width,height,class,xmin,ymin,xmax,ymax\n1.png,60,40,dog,8,12,28,28\n2.png,,,,,,,\n",
    )


@comes_out(
    {"a1.png": {"objects": DOG}, "a2.png": None},
    says=["a group of objects"],
)
def table_of_open_images(src):
    photos(src, "a1.png", "a2.png")
    put(src / "class-descriptions-boxable.csv", "/m/0bt9lr,dog\n/m/01yrx,cat\n")
    rows = ["ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf"]
    rows += [f"a{n},/m/0bt9lr,{4 / 30},{14 / 30},0.3,0.7,{n - 1}" for n in (1, 2)]
    put(src / "train-annotations-bbox.csv", "\n".join(rows))
    return ["--max-set-aside", "1"]


@comes_out(
    {"1.png": {"label": "cat"}, "2.png": {"label": None}, "3.png": {"label": "dog"}},
    says=["test: 1, train: 1, validation: 1", "'nan' 1"],
)
def table_with_splits(src):
    photos(src, "1.png", "2.png", "3.png")
    put(src / "labels.csv", "﻿ID; Label ;Split\n1;cat ;train\n2;nan;val\n3;dog;test\n")


@comes_out(
    {"1.png": {"label": "cat"}},
    says=["label (column 3)"],
)
def table_of_two_names(src):
    photos(src, "1.png")
    put(src / "t.csv", "image,label,label\n1.png,cat,dog\n")


@comes_out(
    {"train/1.png": {"captions": ["a dog"]}, "test/2.png": None},
    says=["test: 1, train: 1", "2 x image not named in any row"],
)
def metadata_of_splits(src):
    for split in ("train", "test"):
        photos(src, f"{split}/1.png", f"{split}/2.png")
        rows = [{"file_name": "1.png", "text": ["a dog", "a dog", " "]}]
        put(src / split / "metadata.jsonl", json.dumps(rows[0]))


@comes_out({"1.png": {"captions": ["a dog"], "objects": DOG}})
def metadata_of_parquet(src):
    photos(src, "1.png")
    kind = pa.dictionary(pa.int8(), pa.string())
    columns = {
        "file_name": ["1.png"],
        "text": pa.array(["a dog"]).cast(kind),
        "objects": [{"bbox": [BOX], "categories": ["dog"]}],
    }
    pq.write_table(pa.table(columns), src / "metadata.parquet")


@comes_out({"1.png": {"captions": ["a dog"]}})
def list_of_conversations(src):
    photos(src, "1.png")
    turns = [{"from": "human", "value": "<image>\nSay."}, {"from": "gpt", "value": "a dog"}]
    put(src / "chat.json", json.dumps([{"id": 7, "image": "1.png", "conversations": turns}]))


@comes_out({"1.png": {"captions": ["a dog"]}, "2.png": {"captions": ["not here"]}})
def captions_beside(src):
    photos(src, "1.png", "2.png")
    put(src / "1.txt", "a dog")
    put(src / "1.json", json.dumps({"caption": "a dog", "url": "http://x"}))
    put(src / "2.caption", "not here\n")


@comes_out(
    {
        "cat /1.png": {"label": "cat"},
        "dog/noending": {"label": "dog"},
        "overview.png": None,
        "_old/9.png": None,
        "dog/raw.nef": None,
    },
    says=[
        "owl",
        "(.nef)",
        "overview.png",
        "image that is hidden",
        "not read: 1 x file of another kind (.json)",
    ],
)
def folders_with_strays(src):
    photos(
        src,
        *(f"{label}/{n}.png" for label in ("cat ", "cat", "dog") for n in range(3)),
        "overview.png",
        "_old/9.png",
    )
    put(src / "notes.json", "{}")
    put(src / "dog/noending", encoded(9, size=(30, 20)))
    put(src / "dog/raw.nef", b"x")
    (src / "owl").mkdir()


@comes_out(
    {"1.gif": {}, "2.tiff": {}, "3.webp": {}, "4.gif": {}}, says=["3 x image of several frames or pages"]
)
def images_of_several_frames(src):
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue", "green")]
    for name in ("1.gif", "2.tiff", "3.webp"):
        frames[0].save(src / name, save_all=True, append_images=frames[1:])
    frames[0].save(src / "4.gif")


@refused("--kind coco", "--kind yolo")
def two_kinds(src):
    photos(src, "images/1.png")
    coco(src / "a.json", ["1.png"], [annotation(0)])
    put(src / "labels/1.txt", f"0 {YOLO}\n")


@refused("--split train")
def splits_beside_others(src):
    photos(src, "train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "extra/cat/4.png")


@refused("a data set already")
def shards_already(src):
    pq.write_table(pa.table({"x": [1]}), put(src / "a.parquet", b""))


@pytest.mark.parametrize(
    ("maker", "code", "expected", "words"), CASES, ids=[case[0].__name__ for case in CASES]
)
def test_import(tmp_path, monkeypatch, capsys, maker, code, expected, words):
    src, out = tmp_path / "src", tmp_path / "out"
    src.mkdir()
    options = maker(src) or []
    source = options.pop(0) if options and not options[0].startswith("--") else str(src)
    monkeypatch.setattr("sys.argv", ["data", "import", source, str(out), *options])
    assert run_command(commands.main) == code
    captured = capsys.readouterr()
    said = captured.out + captured.err
    for name in ("_quarantine.jsonl", "_files.jsonl"):
        said += (out / name).read_text() if (out / name).exists() else ""
    for word in words:
        assert word in said, said
    if expected is None:
        return
    rows = [
        row
        for file in storage.find_files(str(out), ".parquet")
        for row in pq.read_table(file.url).to_pylist()
    ]
    found = {row["image"]["path"].replace(str(tmp_path), "..."): row for row in rows}
    for path, row in expected.items():
        assert (path in found) == (row is not None), said
        for column, value in (row or {}).items():
            if column == "objects":
                assert found[path]["objects"]["category"] == value["category"]
                for box, wanted in zip(found[path]["objects"]["bbox"], value["bbox"], strict=True):
                    assert box == pytest.approx(wanted, abs=1e-3)
            else:
                assert found[path][column] == value
    ledger = json.loads((out / "_import.json").read_text())["ledger"]
    assert sum(row["count"] for row in ledger["rows"] if row["of"] == "files") == ledger["files"]
