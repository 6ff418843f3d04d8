"""An import that was cut off continues, and ends as if it had never been; duplicates and scaling down."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster import storage
from cluster.errors import UserError
from pretrain.data.hashing import DIGEST_BYTES, image_digest
from pretrain.data.packing import import_journal
from pretrain.data.packing.import_taking import Taking
from pretrain.data.packing.importing import ImportOptions, import_images
from pretrain.data.reading.manifest import load_manifest
from tests.pretrain.shards import encoded

NUM_IMAGES = 260


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise that is slow enough to decode for a signal to come in between,
    with ten duplicates and two bad files.
    """
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        (folder / f"c{number % 2}").mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (90, 120, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"c{number % 2}" / f"{number:04d}.png")
    for number in range(10):
        original = folder / f"c{number % 2}" / f"{number:04d}.png"
        (folder / f"c{number % 2}" / f"copy{number}.png").write_bytes(original.read_bytes())
    (folder / "c0" / "copy_of_other_class.png").write_bytes((folder / "c1" / "0001.png").read_bytes())
    (folder / "c0" / "bad.png").write_bytes(b"nothing")
    return folder


def command(photos, dest):
    return [
        sys.executable, "-m", "pretrain.data", "import", str(photos), str(dest), "--validation", "0.3",
        "--shard-mib", "1", "--drop-duplicates", "--workers", "1", "--rows-per-group", "8",
    ]  # fmt: skip


def cut_off(photos, dest, how, shards):
    """Sends a signal to an import once its journal knows of so many whole shards; gives its exit code."""
    for _ in range(8):
        process = subprocess.Popen(
            command(photos, dest), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while shards_known(dest) < shards and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(how)
        if process.wait(timeout=60) != 0:
            return process.returncode
        shutil.rmtree(dest)  # it was done before the signal came
    raise AssertionError("no import could be cut off")


def shards_known(dest):
    with suppress(FileNotFoundError):  # there is none before the first shard and after the last
        reached = json.loads((dest / ".unfinished" / "journal.json").read_text())["reached"]
        return sum(shards for _, shards in reached.values())
    return 0


def content(dest):
    """Everything in DEST but what may differ: path -> bytes, and the summary without its seconds."""
    files = {
        str(path.relative_to(dest)): path.read_bytes()
        for path in sorted(dest.rglob("*"))
        if path.is_file() and path.name != "_import.json"
    }
    summary = json.loads((dest / "_import.json").read_text())
    del summary["seconds"]
    return files, summary


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    dest = tmp_path_factory.mktemp("undisturbed") / "out"
    subprocess.run(command(photos, dest), check=True, capture_output=True)
    return content(dest)


@pytest.mark.parametrize(("how", "shards"), [(signal.SIGKILL, 1), (signal.SIGKILL, 5), (signal.SIGINT, 2)])
def test_cut_off_and_continued_equals_undisturbed(photos, undisturbed, tmp_path, how, shards):
    dest = tmp_path / "out"
    assert cut_off(photos, dest, how, shards) == (130 if how == signal.SIGINT else -9)
    with pytest.raises(UserError, match=r"no \.parquet files"):
        load_manifest(str(dest))  # nobody takes a part for the whole
    done = subprocess.run(command(photos, dest), check=True, capture_output=True, text=True)
    assert "continues an import that was cut off" in done.stdout
    assert content(dest) == undisturbed


def test_an_import_that_began_with_another_digest_continues_with_it(photos, undisturbed, tmp_path):
    dest = tmp_path / "out"
    cut_off(photos, dest, signal.SIGKILL, 3)
    images = [path.read_bytes() for path in photos.rglob("*.png")]
    older = {
        image_digest(data).hex(): hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()
        for data in images
    }
    for part in (dest / ".unfinished").glob("part-*.jsonl"):
        entries = [json.loads(line) for line in part.read_text().splitlines()]
        assert any(what == "digest" for what, *_ in entries)
        part.write_text("".join(f"{json.dumps([what, older.get(key, key), value])}\n"
                                for what, key, value in entries))  # fmt: skip
    journal = dest / ".unfinished" / "journal.json"
    stored = json.loads(journal.read_text())
    del stored["digest"]
    journal.write_text(json.dumps(stored))
    subprocess.run(command(photos, dest), check=True, capture_output=True)
    assert content(dest) == undisturbed


def test_what_the_undisturbed_import_holds(undisturbed):
    files, summary = undisturbed
    assert len([name for name in files if name.endswith(".parquet")]) == summary["shards"] > 5
    assert (summary["images"], summary["duplicates"], summary["quarantined"]) == (NUM_IMAGES, 11, 12)
    assert not any("unfinished" in name for name in files)
    lines = [json.loads(line) for line in files["_quarantine.jsonl"].decode().splitlines()]
    (conflict,) = [line["reason"] for line in lines if "label" in line["reason"]]
    assert "'c0'" in conflict and "'c1'" in conflict


def test_other_options_do_not_continue(photos, tmp_path):
    dest = tmp_path / "out"
    cut_off(photos, dest, signal.SIGKILL, 1)
    with pytest.raises(UserError, match=r"cut off and had other options \(.*seed: 0 -> 5.*\)"):
        import_images(str(photos), str(dest), ImportOptions(seed=5), show_progress=False)
    assert (
        import_images(str(photos), str(dest), overwrite=True, show_progress=False)["images"]
        == NUM_IMAGES + 11
    )


@pytest.mark.parametrize("moves", [0, 1, 4])
def test_cut_off_while_shards_move_to_their_place(photos, undisturbed, tmp_path, monkeypatch, moves):
    dest = tmp_path / "out"
    options = ImportOptions(
        validation_fraction=0.3, bytes_per_shard=2**20, drop_duplicates=True, rows_per_group=8
    )
    fs, done = storage.filesystem(str(dest))[0], []

    def move(self, source, target, **_):
        if len(done) >= moves:
            raise KeyboardInterrupt
        done.append(target)
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "mv", move)
        with pytest.raises(KeyboardInterrupt):
            import_images(str(photos), str(dest), options, show_progress=False)
    assert not (dest / "_import.json").exists()
    import_images(str(photos), str(dest), options, show_progress=False)
    assert content(dest) == undisturbed


def test_cut_off_in_a_store_and_continued(photos, undisturbed, tmp_path, monkeypatch, s3_server):
    dest = f"{s3_server.url}/cut"
    options = ImportOptions(
        validation_fraction=0.3, bytes_per_shard=2**20, drop_duplicates=True, rows_per_group=8
    )
    take, taken = Taking.take, []

    def cut(taking, item, number, writer):
        if len(taken) == 150:
            raise KeyboardInterrupt
        taken.append(number)
        take(taking, item, number, writer)

    with monkeypatch.context() as patch:
        patch.setattr(Taking, "take", cut)
        with pytest.raises(KeyboardInterrupt):
            import_images(str(photos), dest, options, show_progress=False)
    assert storage.names_in(dest) == [".unfinished"] and storage.names_in(f"{dest}/.unfinished/train")
    import_images(str(photos), dest, options, show_progress=False)
    fs, path = storage.filesystem(dest)
    fs.get(path, str(tmp_path / "out"), recursive=True)
    assert content(tmp_path / "out") == undisturbed


def test_parts_that_were_written_before_their_shard_was_whole_are_written_again(
    photos, undisturbed, tmp_path, monkeypatch
):
    monkeypatch.setattr(import_journal, "MAX_PART_BYTES", 200)  # of a few images
    dest = tmp_path / "out"
    options = ImportOptions(
        validation_fraction=0.3, bytes_per_shard=2**20, drop_duplicates=True, rows_per_group=8
    )
    take, taken = Taking.take, []

    def cut(taking, item, number, writer):
        if len(taken) == 150:
            raise KeyboardInterrupt
        taken.append(number)
        take(taking, item, number, writer)

    with monkeypatch.context() as patch:
        patch.setattr(Taking, "take", cut)
        with pytest.raises(KeyboardInterrupt):
            import_images(str(photos), str(dest), options, show_progress=False)
    journal = json.loads((dest / ".unfinished" / "journal.json").read_text())
    parts = list((dest / ".unfinished").glob("part-*.jsonl"))
    num_known = sum(shards for _, shards in journal["reached"].values())
    assert len(parts) > journal["parts"] > num_known > 1  # several a shard, and some of none
    import_images(str(photos), str(dest), options, show_progress=False)
    assert content(dest) == undisturbed


def test_overwrite_continues_too_and_what_a_cut_left_uncounted_is_done_again(photos, undisturbed, tmp_path):
    dest = tmp_path / "out"
    cut_off(photos, dest, signal.SIGKILL, 3)
    journal = dest / ".unfinished" / "journal.json"
    parts = json.loads(journal.read_text())["parts"]
    # as if the kill had come between a part and the journal that counts it
    entries = [["digest", "00" * 16, 5], ["problem", "c0/bad.png", "said twice"]]
    (journal.parent / f"part-{parts:05d}.jsonl").write_text(
        "".join(json.dumps(entry) + "\n" for entry in entries)
    )
    done = subprocess.run(
        [*command(photos, dest), "--overwrite"], check=True, capture_output=True, text=True
    )
    assert "continues an import that was cut off" in done.stdout
    assert content(dest) == undisturbed
    journal.parent.mkdir()
    journal.write_text('{"options": {}}')
    refused = subprocess.run(command(photos, dest), capture_output=True, text=True)
    assert refused.returncode == 2 and "journal.json has format version None" in refused.stderr


def test_check_packs_nothing(photos, tmp_path):
    dest = tmp_path / "out"
    done = subprocess.run([*command(photos, dest), "--check"], check=True, capture_output=True, text=True)
    for words in (
        "source: folder, 272 images (train",
        "first 64 images: ",
        "can be written",
        "MiB of shards",
        "nothing was",
    ):
        assert words in done.stdout, done.stdout
    assert not dest.exists()
    write = dest / "mine.txt"
    dest.mkdir()
    write.write_text("mine")
    refused = subprocess.run([*command(photos, dest), "--check"], capture_output=True, text=True)
    assert refused.returncode == 2 and "mine.txt" in refused.stderr


def test_scaling_down(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    Image.new("RGB", (400, 200), (200, 30, 30)).save(src / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (300, 240), (30, 200, 30)).save(src / "turned.jpg", exif=exif)
    (src / "small.png").write_bytes(encoded(7, size=(20, 30)))
    summary = import_images(
        str(src), str(tmp_path / "out"), ImportOptions(short_side=100), show_progress=False
    )
    rows = [
        row["image"]
        for file in storage.find_files(str(tmp_path / "out"), ".parquet")
        for row in pq.read_table(file.url).to_pylist()
    ]
    images = {row["path"]: Image.open(io.BytesIO(row["bytes"])) for row in rows}
    assert {path: (image.format, image.size) for path, image in images.items()} == {
        "wide.jpg": ("JPEG", (200, 100)),
        "turned.jpg": ("JPEG", (100, 125)),
        "small.png": ("PNG", (20, 30)),
    }
    assert summary["bytes_before_scaling"] == sum(file.stat().st_size for file in src.iterdir())
    assert summary["bytes"] == sum(len(row["bytes"]) for row in rows)


def test_boxes_are_scaled_with_their_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 400, 3)).astype(np.uint8)
    for name in ("coco/a.png", "yolo/images/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    tree = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "x"}]}
    tree["annotations"] = [{"image_id": 1, "category_id": 1, "bbox": [40, 20, 100, 50]}]
    (tmp_path / "coco" / "a.json").write_text(json.dumps(tree))
    (tmp_path / "yolo" / "labels").mkdir()
    (tmp_path / "yolo" / "labels" / "a.txt").write_text("0 0.225 0.225 0.25 0.25\n")  # the same box
    sizes = []
    for quality in (92, 30):
        for source in ("coco/a.json", "yolo"):
            dest = tmp_path / f"{source.partition('/')[0]}{quality}"
            options = ImportOptions(short_side=100, jpeg_quality=quality)
            import_images(str(tmp_path / source), str(dest), options, show_progress=False)
            (row,) = pq.read_table(dest / "shard-00000.parquet").to_pylist()
            np.testing.assert_allclose(row["objects"]["bbox"], [[20, 10, 50, 25]], rtol=1e-6)
            assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (200, 100)
        sizes.append(len(row["image"]["bytes"]))
    assert sizes[1] < 0.6 * sizes[0]
