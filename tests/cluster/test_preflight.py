"""The check of all nodes before workers are booked."""

import dataclasses
import os

import pytest

from cluster import storage
from cluster.errors import UserError
from cluster.training.preflight import (
    CODE,
    NodeReport,
    Wanted,
    _names,
    check_nodes,
    look,
    problems,
    usable_gpus,
    versions,
)

GOOD = NodeReport(
    "head", {"python": "3.11.9", "ray": "2.60.0", "wandb": None, CODE: "abc"}, 0, 0, 50.0, "/tmp"
)


def node(**changes):
    return dataclasses.replace(GOOD, **{"name": "n1", **changes})


@pytest.mark.parametrize(
    ("report", "seen", "expected"),
    [
        (node(), True, []),
        (node(gpus_promised=2, gpus_visible=2), True, []),
        (node(versions=GOOD.versions | {"ray": "2.59.0"}), True, ["node n1: ray 2.59.0, but 2.60.0 here"]),
        (node(versions=GOOD.versions | {"ray": None}), True, ["node n1: ray is missing (here: 2.60.0)"]),
        (node(versions=GOOD.versions | {"wandb": "1"}), True, ["node n1: wandb 1, but none here"]),
        (node(versions=GOOD.versions | {CODE: "def"}), True, [f"node n1: {CODE} def, but abc here"]),
        (
            node(gpus_promised=4, gpus_visible=3, gpu_words="built for CUDA 13.0; driver 470"),
            True,
            ["node n1: Ray promises 4 GPUs, torch can use 3 (built for CUDA 13.0; driver 470)"],
        ),
        (node(disk_free_gib=0.5), True, ["node n1: 0.5 GiB free in /tmp, at least 2 are needed"]),
        (node(), False, ["node n1: what it writes to /out is not seen here; all must share one storage"]),
        (
            node(errors=("cannot read s3://b/x: permission denied",)),
            False,
            ["node n1: cannot read s3://b/x: permission denied"],
        ),
        (
            node(versions={}, disk_free_gib=0.0, errors=("no answer in 180 s",)),
            False,
            ["node n1: no answer in 180 s"],
        ),
    ],
)
def test_what_is_wrong_is_said_of_the_node(report, seen, expected):
    assert (
        problems([GOOD, report], ["driver", "head", *(["n1"] if seen else [])], storage_url="/out")
        == expected
    )


def test_all_that_is_wrong_is_said_at_once():
    bad = [node(name=f"n{number}", disk_free_gib=0.1, gpus_promised=1, gpus_visible=0) for number in (1, 2)]
    found = problems([GOOD, *bad], ["head"], storage_url="s3://me:pw@b/out")
    assert len(found) == 6
    assert "pw" not in " ".join(found)


def test_nodes_of_one_host_are_told_apart():
    assert _names(["a", "b", "a"]) == ["a-1", "b", "a-2"]


def test_a_node_looks_for_itself(tmp_path):
    data = tmp_path / "data"
    data.write_bytes(b"PAR1....")
    (file,) = storage.find_files(str(data), "")
    folder = str(tmp_path / "out/.preflight-1")
    storage.write_bytes(f"{folder}/driver", b"token")
    report = look("n1", 0.0, Wanted(folder, "token", (file,), {}))
    assert report.errors == ()
    assert storage.names_in(folder) == ["driver", "n1"]
    assert report.versions == versions()
    assert report.versions["ray"]
    assert len(report.versions[CODE]) == 12
    assert report.disk_free_gib > 0

    other = look("n1", 0.0, Wanted(folder, "another token", (file,), {}))
    assert other.errors == (f"{folder} is another folder than the driver's; all must share one storage",)
    data.unlink()
    blind = look("n1", 0.0, Wanted(str(tmp_path / "elsewhere"), "token", (file,), {}))
    assert [error.split(":")[-1] for error in blind.errors] == [" it does not exist"] * 2


def test_the_driver_and_what_torch_was_built_for_are_named(tmp_path, monkeypatch):
    """By torch in a process of its own that sees all GPUs, whatever this one may see."""
    import torch

    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 470.57.02\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    num, words = usable_gpus()
    assert f"torch {torch.__version__}, built for" in words and words.endswith("driver 470.57.02")
    if not torch.cuda.device_count() and not os.path.exists("/dev/nvidia0"):
        assert num == 0


@pytest.mark.ray
def test_every_node_is_asked_and_nothing_stays_behind(shared_ray, tmp_path):
    data = tmp_path / "data.parquet"
    data.write_bytes(b"PAR1....")
    out = tmp_path / "out"
    assert check_nodes(str(out), [str(data)], {"CPU": 1}) == 1
    assert list(out.iterdir()) == []
    with pytest.raises(UserError, match=r"not ready; nothing was started: node .*GiB free"):
        check_nodes(str(out), [], {"CPU": 1}, disk_gib=1e6)
    assert list(out.iterdir()) == []
