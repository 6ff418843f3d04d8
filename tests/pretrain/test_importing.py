"""Folders of images become data sets: every readable image once, byte for byte, mixed,
and nothing lost in silence.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster import progress, storage
from cluster.errors import UserError
from pretrain.data.packing.importing import ImportOptions, describe_import, import_images
from pretrain.data.packing.sources.folders import folder_records
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.shards import Shards, read_in_sequence
from tests.pretrain.shards import encoded, photo

CLOTHING = Path(__file__).parents[3] / "shared" / "data" / "clothing_cc0" / "validation"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make_photos(root, classes=("cats", "dogs", "owls"), num=40):
    """Class folders of small images, no two alike; path below the root -> encoded bytes."""
    files = {}
    for class_index, name in enumerate(classes):
        for index in range(num):
            files[f"{name}/{index:03d}.png"] = encoded(class_index * 1000 + index, size=(4, 3))
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return files


def pack_folder(src, dest, **options):
    names = {field.name for field in dataclasses.fields(ImportOptions)}
    chosen = ImportOptions(**{name: options.pop(name) for name in names & options.keys()})
    return import_images(str(src), str(dest), chosen, show_progress=False, **options)


def rows_in(url):
    return [
        row
        for file in storage.find_files(str(url), ".parquet")
        for row in pq.read_table(file.url).to_pylist()
    ]


def test_class_folders(tmp_path):
    files = make_photos(tmp_path / "src")
    summary = pack_folder(tmp_path / "src", tmp_path / "out")
    rows = rows_in(tmp_path / "out")
    assert {row["image"]["path"]: row["image"]["bytes"] for row in rows} == files and len(rows) == 120
    assert all(row["label"] == row["image"]["path"].split("/")[0] for row in rows)
    assert summary["classes"] == {"cats": 40, "dogs": 40, "owls": 40}
    assert (summary["images"], summary["quarantined"], summary["shards"], summary["splits"]) == (
        120,
        0,
        1,
        {},
    )
    assert summary["bytes"] == sum(map(len, files.values()))
    assert summary == storage.read_json(str(tmp_path / "out" / "_import.json"))
    assert "packed 120 images" in describe_import(
        summary, "out"
    ) and "3 classes: cats 40" in describe_import(summary, "out")


def test_every_row_group_is_a_mixture_and_the_order_is_the_seed_s(tmp_path):
    make_photos(tmp_path / "src")
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pack_folder(tmp_path / "src", tmp_path / name, seed=seed, workers=1 if name == "a" else 5)
        orders.append([row["image"]["path"] for row in rows_in(tmp_path / name)])
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])
    for order in orders:
        first_group = [path.split("/")[0] for path in order[:64]]
        # 64 of 120 rows in three equal classes: about 21 of each (hypergeometric, deviation 2.6)
        assert all(10 <= first_group.count(name) <= 33 for name in ("cats", "dogs", "owls"))


def test_bad_files_are_set_aside_with_their_reasons(tmp_path):
    src = tmp_path / "src"
    files = make_photos(src, classes=("cats", "dogs"), num=5)
    (src / "cats" / "page.jpg").write_bytes(b"<html>")
    (src / "cats" / "nothing.jpg").write_bytes(b"")
    (src / "dogs" / "cut.PNG").write_bytes(photo(0)[:-300])
    (src / "dogs" / "gone.png").symlink_to(tmp_path / "never")
    (src / "dogs" / "notes.txt").write_text("no image by its name")
    summary = pack_folder(src, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "_quarantine.jsonl").read_text().splitlines()]
    assert [(line["path"], line["reason"]) for line in lines][:3] == [
        ("cats/nothing.jpg", "empty"),
        ("cats/page.jpg", "not an image"),
        ("dogs/cut.PNG", "truncated"),
    ]
    assert summary["images"] == 10 and summary["quarantined"] == len(lines)
    assert {row["image"]["path"] for row in rows_in(tmp_path / "out")} == set(files)
    assert "set aside" in describe_import(summary, "out") and "truncated 1" in describe_import(
        summary, "out"
    )


def test_nothing_but_bad_files(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.jpg").write_bytes(b"<html>")
    with pytest.raises(
        UserError, match=r"none of the 1 images .* can be used \(first: a\.jpg: not an image\)"
    ):
        pack_folder(tmp_path / "src", tmp_path / "out")
    assert storage.names_in(str(tmp_path / "out")) == ["_quarantine.jsonl"]


def test_the_split_is_by_path_alone(tmp_path):
    src = tmp_path / "src"
    files = make_photos(src, num=60)
    summary = pack_folder(src, tmp_path / "out", validation_fraction=0.25)
    sides = {
        split: {row["image"]["path"] for row in rows_in(tmp_path / "out" / split)}
        for split in ("train", "validation")
    }
    assert sides["train"] | sides["validation"] == set(files) and not sides["train"] & sides["validation"]
    assert summary["splits"] == {split: len(paths) for split, paths in sides.items()}
    assert 25 <= len(sides["validation"]) <= 65  # 45 expected of 180, deviation 5.8
    (src / "cats" / "new.png").write_bytes(encoded(99999))
    pack_folder(src, tmp_path / "more", validation_fraction=0.25, seed=3)
    later = {row["image"]["path"] for row in rows_in(tmp_path / "more" / "validation")}
    assert later - {"cats/new.png"} == sides["validation"]
    with pytest.raises(UserError, match="--validation 1e-09 of 181 images leaves none for validation"):
        pack_folder(src, tmp_path / "never", validation_fraction=1e-9)
    with pytest.raises(UserError, match=r"below 1, not 1\.5"):
        pack_folder(src, tmp_path / "never", validation_fraction=1.5)


def labels_of(src, **options):
    return {record.path: record.label for record in folder_records(str(src), **options).records}


def test_what_counts_as_a_class_folder(tmp_path):
    def folder(name, *paths):
        for path in paths:
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(b"x")
        return tmp_path / name

    flat = folder("flat", "a.jpg", "b.JPEG", "c.txt")
    assert labels_of(flat) == {"a.jpg": None, "b.JPEG": None}
    with pytest.raises(UserError, match=r"2 images lie directly in .*/flat \(first: a\.jpg\)"):
        labels_of(flat, labels="folders")
    two = folder("two", "x/a.jpg", "y/b.jpg", ".hidden/c.jpg", "_trash/d.jpg")
    assert labels_of(two) == {"x/a.jpg": "x", "y/b.jpg": "y"}
    assert set(labels_of(two, labels="none").values()) == {None}
    assert set(labels_of(folder("one", "x/a.jpg", "x/b.jpg")).values()) == {None}, (
        "a single folder is not a classification"
    )
    assert set(labels_of(folder("mixed", "x/a.jpg", "y/b.jpg", "c.jpg")).values()) == {None}
    deep = folder("deep", "train/x/a.jpg", "test/y/b.jpg")
    assert labels_of(deep) == {"train/x/a.jpg": "x", "test/y/b.jpg": "y"}, "folders of splits are no classes"
    nested = folder("nested", "1/x/a.jpg", "2/y/b.jpg")
    assert set(labels_of(nested).values()) == {None}
    assert labels_of(deep, labels="folders") == {"train/x/a.jpg": "x", "test/y/b.jpg": "y"}
    with pytest.raises(UserError, match="unknown value of --labels 'folder'; did you mean 'folders'"):
        labels_of(two, labels="folder")


def test_wrong_sources(tmp_path):
    for src, message in (
        (tmp_path / "missing", "missing does not exist"),
        (tmp_path / "file.jpg", "is a file; give the folder"),
        (tmp_path / "empty", r"no images in .*/empty or its sub-folders \(looked for \.jpg, \.jpeg, \.png"),
        (f"{tmp_path}/*", "is a glob"),
    ):
        (tmp_path / "file.jpg").write_bytes(b"x")
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message):
            pack_folder(src, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_import_again_finds_nothing_to_do(tmp_path):
    src, out = tmp_path / "src", tmp_path / "out"
    make_photos(src, num=20)
    (next(src.iterdir()) / "broken.jpg").write_bytes(b"no image")
    first = pack_folder(src, out, validation_fraction=0.3, max_set_aside=0.001)
    assert "more than --max-set-aside=0.001 allows" in first["stopped"]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = pack_folder(src, out, validation_fraction=0.3, max_set_aside=0.1)
    assert again == {**first, "stopped": None}  # more is allowed, and nothing is packed again
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    (out / "train" / "shard-00000.parquet").unlink()
    with pytest.raises(UserError, match="is not empty"):
        pack_folder(src, out, validation_fraction=0.3)
    make_photos(src, num=21)
    with pytest.raises(UserError, match="is not empty"):
        pack_folder(src, out, validation_fraction=0.3)


def test_overwrite_removes_what_an_import_wrote_and_nothing_else(tmp_path):
    src, out = tmp_path / "src", tmp_path / "out"
    make_photos(src, num=20)
    pack_folder(src, out, validation_fraction=0.3)
    with pytest.raises(
        UserError, match=r"is not empty \(it holds _import\.json\); name another folder or add --overwrite"
    ):
        pack_folder(src, out, validation_fraction=0.4)
    (out / "train" / "my_thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"holds train/my_thesis\.txt, which no import wrote"):
        pack_folder(src, out, overwrite=True)
    assert (out / "_import.json").exists()
    (out / "train" / "my_thesis.txt").unlink()
    assert pack_folder(src, out, overwrite=True)["images"] == 60
    assert storage.names_in(str(out)) == ["_import.json", "shard-00000.parquet"]
    with pytest.raises(UserError, match="which no import wrote"):
        pack_folder(src, src, overwrite=True)


def test_a_destination_inside_the_source_is_not_read(tmp_path):
    files = make_photos(tmp_path, num=3)
    (tmp_path / "out").mkdir()
    for _ in range(2):
        assert pack_folder(tmp_path, tmp_path / "out", overwrite=True)["images"] == len(files)


def test_the_reader_reads_what_was_packed(tmp_path):
    files = make_photos(tmp_path / "src", num=30)
    pack_folder(tmp_path / "src", tmp_path / "out")
    shards = Shards(
        load_manifest(str(tmp_path / "out"), columns=["label"]), image_column="image", columns=["label"]
    )
    rows = [
        pair
        for piece in read_in_sequence(shards)
        for pair in zip(piece.images, piece.columns["label"], strict=True)
    ]
    assert sorted((label, image) for image, label in rows) == sorted(
        (path.split("/")[0], data) for path, data in files.items()
    )


def test_from_and_to_a_store(tmp_path, s3_server):
    files = make_photos(tmp_path / "src", num=10)
    fs, path = storage.filesystem(f"{s3_server.url}/folders")
    fs.put(f"{tmp_path}/src/", path, recursive=True)
    dest = f"{s3_server.url}/imported"
    summary = pack_folder(f"{s3_server.url}/folders", dest, validation_fraction=0.3)
    assert summary["images"] == len(files) and set(summary["classes"]) == {"cats", "dogs", "owls"}
    assert load_manifest(f"{dest}/train").num_rows == summary["splits"]["train"]
    with pytest.raises(UserError, match="is not empty"):
        pack_folder(f"{s3_server.url}/folders", dest)
    assert pack_folder(tmp_path / "src", dest, overwrite=True)["splits"] == {}
    assert load_manifest(dest).num_rows == len(files)


@pytest.mark.skipif(not CLOTHING.exists(), reason="the photos are not here")
def test_real_photos(tmp_path):
    summary = pack_folder(CLOTHING, tmp_path / "out")
    assert summary["images"] == len(list(CLOTHING.glob("*/*.jpg"))) and summary["quarantined"] == 0
    assert len(summary["classes"]) == 10


def test_progress_says_rate_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.ProgressLine("packing", 1000) as line:
        line.start_at(500)  # done before a cut: no part of the rate
        now += 10
        line.advance(100)
    assert capsys.readouterr().err == "packing: 600 of 1,000, 10 a second, 40 s left\n"


def run_cli(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pretrain.data", *arguments], capture_output=True, text=True
    )


def test_the_command_line(tmp_path):
    make_photos(tmp_path / "src", num=4)
    done = run_cli(
        "import", str(tmp_path / "src"), str(tmp_path / "out"), "--labels", "folders", "--validation", "0.3"
    )
    assert done.returncode == 0 and done.stdout.startswith("packed 12 images") and done.stderr == ""
    again = run_cli("import", str(tmp_path / "src"), str(tmp_path / "out"))
    assert again.returncode == 2 and again.stderr.startswith("error: ") and again.stderr.count("\n") == 1
    checked = run_cli("check", str(tmp_path / "out"), "--rows", "all")
    assert checked.returncode == 0 and "12 of 12 rows, 0 bad" in checked.stdout
