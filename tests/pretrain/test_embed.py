"""`python -m pretrain embed`: features of every row in the data's order, in this process and on Ray."""

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch

from cluster.errors import UserError, run_command
from cluster.training.rank_context import local_context
from pretrain.__main__ import main
from pretrain.data.reading.decoded import DecodedRows, columns_to_keep, units_of
from pretrain.data.reading.feature_description import describe_features
from pretrain.data.reading.image_paths import use_image_root
from pretrain.data.reading.manifest import Manifest, load_manifest
from pretrain.data.reading.shards import Shards
from pretrain.data.reading.stored_features import StoredFeatures
from pretrain.data.views.augment import normalised
from pretrain.data.views.random_views import CentralCrop
from pretrain.embedding import check_maps, seen_by
from pretrain.encoders import build_encoder, save_encoder
from pretrain.encoders.teachers import TeacherOutput, open_teacher
from pretrain.training.features import labelled_features
from tests.pretrain.shards import photo, write_by_path, write_shards

NUM_IMAGES = 70
BAD = {5: "not an image", 40: "null"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    images = [photo(number) for number in range(NUM_IMAGES)]
    images[5], images[40] = b"nothing", None
    return write_shards(
        tmp_path_factory.mktemp("photos"), images, rows_per_group=10,
        id=list(range(NUM_IMAGES)), label=[f"class {n % 3}" for n in range(NUM_IMAGES)],
        boxes=[[n] for n in range(NUM_IMAGES)],
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
    with local_context() as context:
        wanted, _ = labelled_features(
            network, shards, label_column=None, size=32, crop_fraction=0.875, context=context,
            mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3),
        )  # fmt: skip
    features = np.array([found[number]["features"] for number in good])
    np.testing.assert_allclose(features, wanted, atol=1e-5, rtol=1e-3)
    assert pq.read_schema(next(out.glob("*.parquet"))).field("features").type == pa.list_(
        pa.float16(), wanted.shape[1]
    )

    bad = [json.loads(line) for line in (out / "bad_rows.jsonl").read_text().splitlines()]
    where = [
        (10 * row["row_group"] + row["row"] + 40 * ("00001" in row["file"]), row["reason"]) for row in bad
    ]
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
    assert (
        embed(url, data, tmp_path / "out", "--size", "64", "--keep", "label", "--rows-per-part", "64") == 2
    )
    assert "another job (size is 32 there, 64 here)" in capsys.readouterr().err
    assert embed(url, data, tmp_path / "b", "--reader-label", "cpu") == 2
    assert "write KEY=VALUE" in capsys.readouterr().err


MAPS = ["--rows-per-part", "16", "--size", "64", "--maps", "2", "--map-channels", "8"]


def files(out):
    """Content of all files but the times in result.json and the URLs in features.json."""
    return {
        path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".parquet", ".safetensors")
    }


@pytest.fixture(scope="module")
def with_maps(data, encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("maps") / "out"
    assert embed(encoder[0], data, out, *MAPS) == 0
    return out


def test_maps_are_what_the_teacher_sees_of_the_whole_image(data, encoder, with_maps):
    described = describe_features(str(with_maps))
    assert (described.maps.cells, described.maps.channels) == (2, 8) and 0.2 < described.maps.explained < 1
    assert described.images == {"size": 64, "whole_image": True, "crop_share": None}
    assert described.teacher["weights_sha256"] and described.content["good_rows"] == 68
    _, network = encoder
    whole, components = CentralCrop(64, whole=True), described.map_components
    found = rows(with_maps)
    for number in (0, 33, 69):
        filling = whole.begin(np.zeros(1, int), np.array([number]))
        filling.fill(0, photo(number))
        images = normalised(filling.arrays[0], torch.device("cpu"), (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
        with torch.no_grad():
            last = network(images)[-1][0].permute(1, 2, 0).numpy()
        wanted = (last - components["mean"]) @ components["components"] / components["scale"]
        maps = np.array(found[number]["maps"]).reshape(8, 2, 2)
        np.testing.assert_allclose(maps, wanted.transpose(2, 0, 1), atol=5e-3)
        np.testing.assert_allclose(found[number]["features"], last.mean((0, 1)), atol=2e-3)
    assert found[5]["maps"] is None and found[5]["features"] is None
    assert len({row["checksum"] for row in found}) == NUM_IMAGES and found[40]["checksum"] == 0


def test_a_job_that_was_cut_off_goes_on_with_the_same_components(data, encoder, with_maps, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(with_maps, out)
    for name in ("part-00000001-0000.parquet", "part-00000005-0000.parquet", "features.json"):
        (out / name).unlink()
    assert embed(encoder[0], data, out, *MAPS) == 0
    assert "2 of 7 parts made" in capsys.readouterr().out
    assert files(out) == files(with_maps)
    # components are fitted the same again, on the same images
    (out / "map_pca.safetensors").unlink()
    assert embed(encoder[0], data, out, *MAPS) == 0
    assert files(out) == files(with_maps)
    # other components would not fit the parts that are there
    tensors = safetensors.numpy.load((out / "map_pca.safetensors").read_bytes())
    tensors["mean"] += 1
    (out / "map_pca.safetensors").write_bytes(safetensors.numpy.save(tensors))
    assert embed(encoder[0], data, out, *MAPS) == 2
    assert "holds the parts of another job (map_pca is" in capsys.readouterr().err


def test_features_are_finished_when_they_are_described(data, encoder, tmp_path):
    out, manifest = tmp_path / "out", load_manifest(data)
    assert embed(encoder[0], data, out, "--rows-per-part", "16") == 0
    StoredFeatures(str(out), manifest)
    described = (out / "features.json").read_bytes()
    (out / "features.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        StoredFeatures(str(out), manifest)
    assert embed(encoder[0], data, out, "--rows-per-part", "16") == 0
    assert (out / "features.json").read_bytes() == described
    (out / "part-00000003-0000.parquet").unlink()
    (out / "part-00000004-0000.parquet").write_bytes(b"PAR1")
    assert embed(encoder[0], data, out, "--rows-per-part", "16") == 2  # it names the damaged part
    with pytest.raises(UserError, match="not finished"):
        StoredFeatures(str(out), manifest)
    (out / "part-00000004-0000.parquet").unlink()
    assert embed(encoder[0], data, out, "--rows-per-part", "16") == 0
    assert (out / "features.json").read_bytes() == described


def test_maps_that_cannot_be_are_said(data, encoder, tmp_path, capsys):
    url, _ = encoder
    assert embed(url, data, tmp_path / "out", "--maps", "3", "--size", "64") == 2
    assert (
        "has 2 x 2 positions at 64 pixels; ask for at most 2, or for larger images, such as --size 96"
        in said(capsys)
    )
    assert embed(url, data, tmp_path / "out", "--maps", "1", "--map-channels", "9999") == 2
    assert "--map-channels 9999: the last map of" in said(capsys)
    teacher, seen = open_teacher(url), TeacherOutput(torch.zeros(1, 160), [])
    with pytest.raises(
        UserError, match=r"--maps 7: the teacher .* has no maps, only pooled features; leave --maps out"
    ):
        check_maps(teacher, seen, 224, 7, 64)
    with pytest.raises(
        UserError,
        match=r"--size 64: .* does not take images of 64 pixels \(.*mat1 and mat2.*its own size is 32",
    ):
        seen_by(dataclasses.replace(teacher, network=torch.nn.Linear(32, 5)), 64)
    own = write_shards(tmp_path / "own", [photo(0)], maps=[1])
    assert embed(url, own, tmp_path / "out") == 2
    assert "a column 'maps' of the data cannot go along, embed has its own; leave it out by --keep" in said(
        capsys
    )
    assert embed(tmp_path / "nowhere", data, tmp_path / "out") == 2 and str(tmp_path / "nowhere") in said(
        capsys
    )
    assert not (tmp_path / "out").exists()


def said(capsys):
    """What was said on stderr, one line."""
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "Traceback" not in error
    return error


def manifest_of(*groups_of_files):
    rows_of_group = np.concatenate([np.array(groups, np.int64) for groups in groups_of_files])
    file_of_group = np.repeat(
        np.arange(len(groups_of_files), dtype=np.int32), [len(g) for g in groups_of_files]
    )
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
    both = [
        np.array([row["features"] for row in part if row["features"] is not None]) for part in (mine, theirs)
    ]
    np.testing.assert_allclose(*both, atol=1e-5, rtol=1e-3)
    assert (out / "bad_rows.jsonl").read_text() == (tmp_path / "here" / "bad_rows.jsonl").read_text()


def test_features_of_images_that_the_data_names_by_path(encoder, tmp_path):
    write_by_path(tmp_path, 6)
    held = write_shards(tmp_path / "held", [photo(number) for number in range(6)], rows_per_group=6)
    try:
        assert (
            embed(encoder[0], tmp_path / "data", tmp_path / "out", "--image-root", tmp_path / "photos") == 0
        )
        data = DecodedRows(load_manifest(str(tmp_path / "data")), "image", (), CentralCrop(32))
    finally:
        use_image_root(None)
    assert embed(encoder[0], held, tmp_path / "wanted") == 0
    found, wanted = ([row["features"] for row in rows(tmp_path / name)] for name in ("out", "wanted"))
    assert found == wanted and None not in found
    # a process that reads for others looks into the same folder
    sent = pickle.loads(pickle.dumps(data))
    try:
        assert [table.num_rows for table in sent()((0, 1))] == [6]
    finally:
        use_image_root(None)
