"""`python -m pretrain embed`: features of every row in the data's order, in this process and on Ray."""

import json
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster.errors import run_command
from cluster.place import place_here
from pretrain.__main__ import main
from pretrain.data.decoded import columns_to_keep, units_of
from pretrain.data.manifest import Manifest, load_manifest
from pretrain.data.shards import Shards
from pretrain.encoders import build_encoder, save_encoder
from pretrain.training.features import labelled_features
from tests.pretrain.shards import photo, write_shards

NUM_IMAGES = 70
BAD = {5: "not an image", 40: "null"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    images = [photo(number) for number in range(NUM_IMAGES)]
    images[5], images[40] = b"nothing", None
    return write_shards(
        tmp_path_factory.mktemp("photos"), images, rows_per_group=10,
        id=list(range(NUM_IMAGES)), label=[f"class {n % 3}" for n in range(NUM_IMAGES)], boxes=[[n] for n in range(NUM_IMAGES)],
    )  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    url = str(tmp_path_factory.mktemp("encoder"))
    network = build_encoder("convattn_nano", stem_stride=4)
    save_encoder(network, url, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3), input_size=32)
    return url, network.eval()


def embed(*arguments):
    return run_command(lambda: main(["embed", *map(str, arguments)]))


def rows(out):
    return [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_features_of_every_row_in_order_with_what_is_kept(data, encoder, tmp_path, capsys):
    url, network = encoder
    out = tmp_path / "out"
    assert embed(url, data, out, "--rows-per-part", "16") == 0
    assert "features of 68 images, 2 bad rows" in capsys.readouterr().out
    found = rows(out)
    good = [number for number in range(NUM_IMAGES) if number not in BAD]
    assert [row["id"] for row in found] == list(range(NUM_IMAGES))
    assert [row["label"] for row in found] == [f"class {n % 3}" for n in range(NUM_IMAGES)]
    names = ("features", "checksum", "file", "row_group", "row", "id", "label", "image.path")
    assert {tuple(row) for row in found} == {names}
    assert [(row["row_group"], row["row"]) for row in found[:12]] == [(n // 10, n % 10) for n in range(12)]
    assert [row["id"] for row in found if row["features"] is None] == list(BAD)

    shards = Shards(load_manifest(data), image_column="image")
    with place_here() as place:
        wanted, _ = labelled_features(
            network, shards, label_column=None, size=32, crop_share=0.875, place=place,
            mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3),
        )  # fmt: skip
    features = np.array([found[number]["features"] for number in good])
    np.testing.assert_allclose(features, wanted, atol=1e-5, rtol=1e-3)
    assert pq.read_schema(next(out.glob("*.parquet"))).field("features").type == pa.list_(pa.float16(), wanted.shape[1])

    bad = [json.loads(line) for line in (out / "bad_rows.jsonl").read_text().splitlines()]
    where = [(10 * row["row_group"] + row["row"] + 40 * ("00001" in row["file"]), row["reason"]) for row in bad]
    assert where == list(BAD.items())
    assert json.loads((out / "result.json").read_text())["rows"] == 70

    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert embed(url, data, out, "--rows-per-part", "16") == 0
    assert "0 of 7 parts made" in capsys.readouterr().out
    assert before == {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}


def test_check_tries_a_part_and_leaves_nothing(data, encoder, tmp_path, capsys):
    url, _ = encoder
    out = tmp_path / "out"
    assert embed(url, data, out, "--rows-per-part", "16", "--check") == 0
    said = capsys.readouterr().out
    assert f"{out} can be written; 0 of 7 parts are there" in said and "for 7 parts with 1 worker" in said
    assert "nothing was started" in said and not out.exists()
    assert embed(url, data, out, "--rows-per-part", "16") == 0
    assert embed(url, data, out, "--rows-per-part", "16", "--check") == 0
    assert "7 of 7 parts are there" in capsys.readouterr().out
    assert embed(url, data, out, "--rows-per-part", "8", "--check") == 2
    assert "holds the parts of another job (rows_per_part is 16 there, 8 here)" in capsys.readouterr().err


def test_what_cannot_be_is_said(data, encoder, tmp_path, capsys):
    url, _ = encoder
    assert embed(url, data, tmp_path / "out", "--keep", "lable") == 2
    assert "no column 'lable' to keep; did you mean 'label'?" in capsys.readouterr().err
    assert embed(url, data, tmp_path / "out", "--keep", "label", "--rows-per-part", "64") == 0
    assert set(rows(tmp_path / "out")[0]) == {"features", "checksum", "file", "row_group", "row", "label"}
    assert embed(url, data, tmp_path / "out", "--size", "64", "--keep", "label", "--rows-per-part", "64") == 2
    assert "another job (size is 32 there, 64 here)" in capsys.readouterr().err
    assert embed(url, data, tmp_path / "b", "--reader-label", "cpu") == 2
    assert "write KEY=VALUE" in capsys.readouterr().err


def manifest_of(*groups_of_files):
    rows_of_group = np.concatenate([np.array(groups, np.int64) for groups in groups_of_files])
    file_of_group = np.repeat(np.arange(len(groups_of_files), dtype=np.int32), [len(g) for g in groups_of_files])
    in_file = np.concatenate([np.arange(len(groups), dtype=np.int32) for groups in groups_of_files])
    return Manifest((), file_of_group, in_file, rows_of_group, rows_of_group, file_of_group, "")


def test_units_are_neighbouring_groups_of_one_file():
    units = units_of(manifest_of([10, 10, 10, 10, 30], [7], [300, 5]), rows_per_part=32)
    assert [(unit.task, unit.num_parts) for unit in units] == [
        ([0, 3], 1), ([3, 4], 1), ([4, 5], 1), ([5, 6], 1), ([6, 7], 10), ([7, 8], 1),
    ]  # fmt: skip


def test_nested_columns_and_bytes_stay_behind(data):
    assert columns_to_keep(load_manifest(data), "image", None) == ["id", "label", "image.path"]
    assert columns_to_keep(load_manifest(data), "image", ["boxes"]) == ["boxes"]


@pytest.mark.ray
@pytest.mark.slow
def test_on_ray_and_killed_on_the_way_the_same_features(data, encoder, tmp_path):
    url, _ = encoder
    assert embed(url, data, tmp_path / "here", "--rows-per-part", "8") == 0
    out = tmp_path / "ray"
    command = [sys.executable, "-m", "pretrain", "embed", url, data, str(out), "--rows-per-part", "8"]
    command += ["--workers", "1", "--readers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200)
    assert done.returncode == 0, done.stdout
    assert "features of 68 images, 2 bad rows" in done.stdout.splitlines()[-1], done.stdout
    assert "WARNING" not in done.stdout and "Error" not in done.stdout
    mine, theirs = rows(out), rows(tmp_path / "here")
    assert [row["id"] for row in mine] == [row["id"] for row in theirs]
    both = [np.array([row["features"] for row in part if row["features"] is not None]) for part in (mine, theirs)]
    np.testing.assert_allclose(*both, atol=1e-5, rtol=1e-3)
    assert (out / "bad_rows.jsonl").read_text() == (tmp_path / "here" / "bad_rows.jsonl").read_text()
