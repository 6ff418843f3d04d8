"""Runs that learn from stored features: the same bits from a disk and a store,
and on other workers after a kill.
"""

import pickle
import subprocess
import sys
import uuid
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster import storage
from cluster.errors import run_command
from cluster.settings import load_settings
from pretrain.__main__ import main
from pretrain.data.reading.order import Segment
from pretrain.data.reading.shards import Shards
from pretrain.papers import defaults_of
from pretrain.run import Parts, with_stored
from pretrain.settings import PretrainSettings
from tests.pretrain.features import write_features
from tests.pretrain.recording import rows_by_step
from tests.pretrain.runs import arguments, assert_equal_runs, start, wait_for_step
from tests.pretrain.shards import photo, write_shards

STEPS = 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with `data`, of 96 photos of which two are bad, and their `features`."""
    folder = tmp_path_factory.mktemp("distill")
    images = [photo(number) for number in range(96)]
    images[5], images[40] = b"nothing", None
    write_features(folder / "features", write_shards(folder / "data", images, rows_per_group=10))
    return folder


def options(url, out, *, workers=0, **more):
    settings = arguments(f"{url}/data", out, steps=STEPS, workers=workers, **more)
    settings[0] = "configs/pretrain/small/distill.yaml"
    return [*settings, f"method.arguments.features={url}/features", "method.arguments.map_weight=0"]


def uploaded(folder, url):
    for path in folder.glob("*/*"):
        storage.upload(path, f"{url}/{path.parent.name}/{path.name}")
    return url


@pytest.mark.slow
def test_a_store_and_a_disk_give_equal_runs(folder, s3_server, tmp_path):
    far = uploaded(folder, f"{s3_server.url}/{uuid.uuid4().hex}")
    for url, out in ((str(folder), tmp_path / "disk"), (far, tmp_path / "store")):
        assert run_command(lambda url=url, out=out: main(options(url, out))) == 0
    assert_equal_runs(tmp_path / "disk", tmp_path / "store")


def test_workers_list_no_features_and_read_no_labels_again(folder, tmp_path, monkeypatch):
    """What the command knows of stored features and labelled data goes to the workers,
    and reads the same rows there.
    """
    data = write_shards(
        tmp_path / "labelled", [photo(number) for number in range(8)], label=list("abababab")
    )
    config, *overrides = options(folder, tmp_path / "out", knn__train_url=data, knn__test_url=data)
    settings = load_settings(PretrainSettings, config, overrides, beneath=defaults_of)
    here = Parts.of(settings)
    known = pickle.loads(pickle.dumps(here.known))
    monkeypatch.setattr("cluster.storage.find_files", None)
    there = Parts.of(settings, known)
    assert there.known.probe is not None

    def features(parts):
        source = with_stored(parts, Shards(parts.manifest, image_column="image"))
        return [
            row
            for rows in source.read(Segment(group=0, start=0, stop=4))
            for row in rows.columns["features"]
        ]

    assert np.array_equal(features(here), features(there)) and len(features(there)) == 4


def test_features_of_other_data_end_the_command_in_one_line(folder, tmp_path, capsys):
    other = write_shards(tmp_path / "data", [photo(number) for number in range(60)])
    command = [*options(str(folder), tmp_path / "out"), f"data.url={other}"]
    assert run_command(lambda: main(command)) == 2
    error = capsys.readouterr().err.strip()
    assert (
        "holds the features of 96 rows of" in error and "the data has 60 rows" in error and "\n" not in error
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_killed_and_continued_on_other_workers_the_same_rows_meet_the_same_features(
    folder, s3_server, tmp_path
):
    far = uploaded(folder, f"{s3_server.url}/{uuid.uuid4().hex}")
    exact = {"method__exact_pieces": 2}
    recorded = {"module": "tests.pretrain.recording"}
    process = start(*options(far, tmp_path / "whole", **exact), **recorded)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output

    out = tmp_path / "killed"
    (tmp_path / "killed.rows").mkdir()
    (tmp_path / "killed.rows" / "seconds").write_text("0.3")
    process = start(*options(str(folder), out, workers=2, **exact), **recorded)
    wait_for_step(process, out, 6)
    process.kill()
    process.wait()
    command = [sys.executable, "-m", "tests.pretrain.recording", *options(str(folder), out, **exact)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert_equal_runs(tmp_path / "whole", out)

    rows, features = (rows_by_step(tmp_path / "killed.rows", what) for what in ("rows", "features"))
    assert rows == rows_by_step(tmp_path / "whole.rows")
    assert features == rows_by_step(tmp_path / "whole.rows", "features")
    stored = [
        row
        for path in sorted((folder / "features").glob("*.parquet"))
        for row in pq.read_table(path)["features"]
    ]
    sums = [
        None if row.as_py() is None else zlib.crc32(np.array(row.as_py(), np.float16).tobytes())
        for row in stored
    ]
    bad = [row_id for row_id, checksum in enumerate(sums) if checksum is None]
    assert bad == [5, 40] and len(set(sums)) > 80 and sorted(rows) == list(range(STEPS))
    for step, row_ids in rows.items():
        for row_id, checksum in zip(row_ids, features[step], strict=True):
            assert checksum == sums[row_id] or row_id in bad
