"""Workers on GPUs that only Ray believes in: devices, CPUs and NCCL's binding as they are recorded;
see `recorded_gpus`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.recorded_gpus import FOUND, GPUS_OF_A_NODE, NUM_NODES, WORDS

pytestmark = [pytest.mark.ray, pytest.mark.slow]  # a cluster of three nodes


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = {
        **os.environ, "RAY_AUTH_MODE": "disabled", "RAY_prestart_worker_first_driver": "0",
        # a worker sees its neighbour's GPU, and must not be bound to that
        "TRAIN_ENABLE_SHARE_CUDA_VISIBLE_DEVICES": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),  # Ray's processes import what is recorded from here
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    folder = tmp_path_factory.mktemp("gpus")
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.recorded_gpus", str(folder)],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / FOUND).read_text())
    return found


def test_each_worker_computes_on_a_gpu_of_its_own(seen: dict[str, Any]) -> None:
    ranks = seen["good"]
    assert len(ranks) == NUM_NODES * GPUS_OF_A_NODE
    assert all(rank["device"].startswith("cuda:") and rank["gpus_of_ray"] == [rank["gpu"]] for rank in ranks)
    assert set(Counter((rank["node"], rank["gpu"]) for rank in ranks).values()) == {1}
    assert set(Counter(rank["node"] for rank in ranks).values()) == {GPUS_OF_A_NODE}


def test_nccl_is_bound_to_the_device_that_the_worker_computes_on(seen: dict[str, Any]) -> None:
    for rank in seen["good"]:
        assert rank["bound_to"] == rank["device_set"] == rank["device"]
        assert rank["was_set_before"] and rank["backend"] == "cpu:gloo,cuda:nccl"


def test_a_worker_has_its_gpus_part_of_the_nodes_cpus(seen: dict[str, Any]) -> None:
    for rank in seen["good"]:  # seven CPUs, one of them left to the system
        assert (rank["cpus_of_ray"], rank["threads"], rank["decode_threads"]) == (3.0, 3, 3)
    assert "each worker asks for a GPU and 3 CPUs" in json.dumps(seen["notes"])


def test_gpus_that_torch_cannot_use_are_found_before_workers_are_booked(seen: dict[str, Any]) -> None:
    assert seen["too old"].count(f"Ray promises 2 GPUs, torch can use 1 ({WORDS})") == NUM_NODES
    assert "nothing was started" in seen["too old"]


def test_a_node_that_was_not_asked_ends_the_run_in_one_line_without_restarts(seen: dict[str, Any]) -> None:
    assert f"torch cannot use the GPU that Ray gave a worker there ({WORDS})" in seen["late"]
    assert "cluster.gpus_per_worker=0 trains on CPUs" in seen["late"]
