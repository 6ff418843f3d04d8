"""What a worker asks of a cluster where the user does not say:
pure rules, and a real Ray with GPUs that are only named.
"""

import os
import subprocess
import sys

import pytest

from cluster.errors import UserError
from cluster.training.shares import check_gpus, share_here, share_on_cluster

HEAD, CPUS, GPUS = {"CPU": 2.0}, {"CPU": 16.0}, {"CPU": 32.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "may_become", "cpus", "gpus", "resources", "words"),
    [
        ([HEAD, CPUS], None, None, None, {"CPU": 1}, ""),
        ([HEAD, GPUS, GPUS], None, None, None, {"CPU": 7, "GPU": 1}, "a GPU and 7 CPUs"),
        ([HEAD, GPUS, {"CPU": 8.0, "GPU": 1.0}], None, None, None, {"CPU": 7, "GPU": 1}, "a GPU and 7 CPUs"),
        ([HEAD, {"CPU": 4.0, "GPU": 4.0}], None, None, None, {"CPU": 1, "GPU": 1}, "a GPU and 1 CPUs"),
        ([HEAD, GPUS], None, 3, None, {"CPU": 3, "GPU": 1}, ""),
        (
            [HEAD, GPUS],
            None,
            None,
            0,
            {"CPU": 1},
            "the cluster has 4 GPUs, and cluster.gpus_per_worker=0 leaves them idle",
        ),
        (
            [HEAD],
            {"CPU": 34.0, "GPU": 8.0},
            None,
            None,
            {"CPU": 1, "GPU": 1},
            "a GPU",
        ),  # none has started yet
        ([HEAD], None, None, 1, {"CPU": 1, "GPU": 1}, "a GPU"),  # is refused when resources are checked
    ],
)
def test_a_worker_takes_a_gpu_where_any_node_has_one(nodes, may_become, cpus, gpus, resources, words):
    share = share_on_cluster(nodes, may_become, cpus, gpus)
    assert share.resources == resources and words in share.words and bool(words) == bool(share.words)


def test_nodes_that_have_not_started_yet_count_as_the_kinds_that_they_will_be():
    """A cluster at rest is a head alone; its first run must not decode with one thread a GPU."""
    kinds = [{"CPU": 16}, {"CPU": 48, "GPU": 4}]
    assert share_on_cluster([HEAD], {"CPU": 98, "GPU": 8}, None, None, kinds=kinds).resources == {
        "CPU": 11,
        "GPU": 1,
    }
    assert share_on_cluster([HEAD, GPUS], None, None, None, kinds=kinds).resources == {"CPU": 7, "GPU": 1}


def test_here_the_machine_is_shared_evenly():
    assert share_here(16, 3, None, None, has_gpu=True).resources == {"CPU": 5, "GPU": 1}
    assert share_here(2, 4, None, 0, has_gpu=True).resources == {"CPU": 1}


@pytest.mark.parametrize("gpus", [0.5, 2])
def test_a_worker_has_one_gpu_or_none(gpus):
    with pytest.raises(
        UserError, match=rf"gpus_per_worker={gpus:g} is not possible: a worker computes on one GPU"
    ):
        check_gpus(gpus)


@pytest.mark.ray
@pytest.mark.slow
def test_a_head_without_gpus_does_not_make_a_run_train_on_cpus_unsaid(tmp_path):
    """GPUs that Ray only believes in: they are asked for, and it is said that torch cannot use them;
    0 trains on CPUs.
    """
    from tests.pretrain.shards import photo, write_shards

    data = write_shards(tmp_path / "data", [photo(number) for number in range(64)])
    script = (
        "import os, subprocess, sys\n"
        "from ray.cluster_utils import Cluster\n"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1, 'object_store_memory': "
        "10**8})\n"
        "cluster.add_node(num_cpus=4, num_gpus=2, object_store_memory=10**8)\n"
        "environment = {**os.environ, 'RAY_ADDRESS': cluster.address}\n"
        "done = subprocess.run([sys.executable, '-m', 'pretrain', *sys.argv[1:]], env=environment)\n"
        "cluster.shutdown()\n"
        "sys.exit(done.returncode)\n"
    )
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)

    def pretrain(*settings):
        command = [
            sys.executable,
            "-c",
            script,
            "configs/pretrain/small/simclr.yaml",
            f"data.url={data}",
            *settings,
        ]
        command += [
            "training.batch_size_global=16",
            "training.steps=2",
            "report_images=0",
            "rankme_images=0",
            "views.size=32",
        ]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)

    refused = pretrain(f"out={tmp_path / 'a'}", "cluster.workers=2")
    assert refused.returncode == 2 and "Ray promises 2 GPUs, torch can use 0" in refused.stderr
    checked = pretrain(f"out={tmp_path / 'b'}", "cluster.workers=2", "cluster.gpus_per_worker=0", "--check")
    assert checked.returncode == 0, checked.stderr
    assert "first batch of a worker: 8 images" in checked.stdout and not (tmp_path / "b").exists()
    on_cpus = pretrain(f"out={tmp_path / 'b'}", "cluster.workers=1", "cluster.gpus_per_worker=0")
    assert on_cpus.returncode == 0, on_cpus.stderr
    assert "the cluster has 2 GPUs, and cluster.gpus_per_worker=0 leaves them idle" in on_cpus.stdout
    assert (
        "trains on cpu" in on_cpus.stdout
        and '"device": "cpu"' in (tmp_path / "b" / "result.json").read_text()
    )
    assert "# trained on cpu, 1 workers" in (tmp_path / "b" / "settings.yaml").read_text()
