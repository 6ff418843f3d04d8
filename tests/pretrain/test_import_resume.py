"""An import that was cut off continues, and ends as if it had never been; duplicates and scaling down."""

import io
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster import storage
from cluster.errors import UserError
from pretrain.data.importing import ImportOptions, import_images
from pretrain.data.manifest import load_manifest
from tests.pretrain.shards import encoded

NUM_IMAGES = 260


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise that is slow enough to decode for a signal to come in between, with ten duplicates and two bad files."""
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
        sys.executable, "-m", "pretrain.data", "import", str(photos), str(dest), "--validation", "0.3", "--shard-mib", "1",
        "--drop-duplicates", "--workers", "1", "--rows-per-group", "8",
    ]  # fmt: skip


def wait_for_shards(process, dest, num):
    """Waits until the journal knows of so many whole shards."""
    journal = dest / ".unfinished" / "journal.json"
    while (
        not journal.exists() or sum(shards for _, shards in json.loads(journal.read_text())["reached"].values()) < num
    ):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


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
    process = subprocess.Popen(command(photos, dest), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_shards(process, dest, shards)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -9), errors
    with pytest.raises(UserError, match=r"no \.parquet files"):
        load_manifest(str(dest))  # nobody takes a part for the whole
    done = subprocess.run(command(photos, dest), check=True, capture_output=True, text=True)
    assert "continues an import that was cut off" in done.stdout
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
    process = subprocess.Popen(command(photos, dest), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_shards(process, dest, 1)
    process.kill()
    process.wait()
    with pytest.raises(UserError, match=r"cut off and had other options \(.*seed.*\)"):
        import_images(str(photos), str(dest), ImportOptions(seed=5), show_progress=False)
    assert import_images(str(photos), str(dest), overwrite=True, show_progress=False)["images"] == NUM_IMAGES + 11


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
    summary = import_images(str(src), str(tmp_path / "out"), ImportOptions(short_side=100), show_progress=False)
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
