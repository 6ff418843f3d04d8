"""The files for clusters: fields, what they hold in common, and scripts. No cluster is asked."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.settings import load_settings
from pretrain.papers import defaults_of
from pretrain.settings import PretrainSettings
from tests.cluster.kuberay_fields import OBJECTS, problems

KUBERAY = Path("cluster/kuberay")
IMAGE_USER = 1000
SBATCH = Path("cluster/slurm/fovea.sbatch")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return spec.get("rayClusterSpec", spec)


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_files_have_only_fields_that_there_are(name: str) -> None:
    document = read(KUBERAY / name)
    assert problems(document, OBJECTS[document["kind"]], document["kind"]) == []
    assert "For KubeRay 1.6.2" in (KUBERAY / name).read_text()


def test_the_check_of_fields_finds_what_is_wrong() -> None:
    right = read(KUBERAY / "rayjob.yaml")
    for break_it, told in [
        (lambda job: job["spec"].update(entryPoint="x"), "RayJob.spec has no field 'entryPoint'"),
        (lambda job: job["spec"].update(backoffLimit="2"), "RayJob.spec.backoffLimit is '2', not int"),
        (
            lambda job: cluster_of(job)["workerGroupSpecs"][0].pop("groupName"),
            "workerGroupSpecs[0] lacks 'groupName'",
        ),
        (
            lambda job: cluster_of(job)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
            "is 0, not a text",
        ),
        (
            lambda job: cluster_of(job)["authOptions"].update(mode="tokens"),
            "not one of ['disabled', 'token']",
        ),
    ]:
        wrong = copy.deepcopy(right)
        break_it(wrong)  # type: ignore[no-untyped-call]
        assert any(told in text for text in problems(wrong, OBJECTS["RayJob"], "RayJob")), told


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_clusters_lock_their_doors_and_share_a_volume(name: str) -> None:
    cluster = cluster_of(read(KUBERAY / name))
    claim = read(KUBERAY / "storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert (
        cluster["authOptions"]["mode"] == "token" and cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    )
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        mounts = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounts <= {volume["name"] for volume in pod["volumes"]} and "shared" in mounts
        claims = [
            v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
        ]
        assert claims == [claim["metadata"]["name"]]
        # the image's user, see the Dockerfile, could not write to a volume that is root's
        assert pod["securityContext"]["fsGroup"] == IMAGE_USER
        wants_gpus = "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
        assert ("runtimeClassName" in pod) == wants_gpus


def test_the_image_has_the_user_and_all_packages() -> None:
    text = Path("cluster/Dockerfile").read_text()
    assert f"--uid {IMAGE_USER} ray" in text
    for package in ("cluster", "pretrain", "finetune", "fovea"):
        assert f"COPY {package} {package}\n" in text


def test_the_entrypoint_of_the_job_has_settings_that_there_are_and_room_for_its_workers() -> None:
    job = read(KUBERAY / "rayjob.yaml")["spec"]
    python, module, name, config, *overrides = shlex.split(job["entrypoint"])
    assert (python, module, name) == ("python", "-m", "pretrain")
    settings = load_settings(PretrainSettings, config, overrides, beneath=defaults_of)
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus, cpus = int(limits["nvidia.com/gpu"]), int(limits["cpu"])
    workers_of_a_node = min(gpus, int(cpus // (settings.cluster.cpus_per_worker or 1)))
    assert workers_of_a_node * group["maxReplicas"] == settings.cluster.workers
    assert 0 < settings.cluster.min_workers < settings.cluster.workers


@pytest.mark.parametrize("text", [*KUBERAY.glob("*.yaml"), SBATCH, Path("cluster/Dockerfile")], ids=str)
def test_no_file_names_a_version_of_ray_that_is_not_the_pinned_one(text: Path) -> None:
    pinned = re.search(r"^ray==(\S+)$", Path("constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert set(re.findall(r"rayVersion: \"(.+?)\"", text.read_text())) <= {pinned[1]}


def test_aws_yaml_is_valid_for_rays_own_check() -> None:
    import jsonschema
    import ray.autoscaler
    from ray.autoscaler.sdk import fillout_defaults

    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    config = read(Path("cluster/aws.yaml"))
    prepared = fillout_defaults(copy.deepcopy(config))
    jsonschema.validate(prepared, schema)
    assert prepared["head_node_type"] == "head" and config["available_node_types"]["head"]["resources"] == {
        "CPU": 0
    }
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert command == "ray stop" or command.startswith("RAY_AUTH_MODE=token ray start ")
    for kind in prepared["available_node_types"].values():  # without, Ray takes an image with an old driver
        assert kind["node_config"]["ImageId"].startswith(
            "resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia"
        )
    of_gpus = prepared["available_node_types"]["gpu"]["docker"]["worker_run_options"]
    assert "-e NVIDIA_VISIBLE_DEVICES=all" in of_gpus
    config["available_node_types"]["gpu"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        jsonschema.validate(fillout_defaults(config), schema)


def test_the_command_in_aws_yaml_has_settings_that_there_are_and_room_for_its_workers() -> None:
    text = Path("cluster/aws.yaml").read_text()
    (line,) = (line for line in text.splitlines() if "cluster.workers=" in line)
    given = ["data.url=a", "out=b", *line.removeprefix("#").split()]
    settings = load_settings(PretrainSettings, "configs/pretrain/simclr.yaml", given, beneath=defaults_of)
    kind = read(Path("cluster/aws.yaml"))["available_node_types"]["gpu"]
    assert settings.cluster.workers == kind["resources"]["GPU"] * kind["max_workers"]
    assert (
        settings.training.batch_size_global // settings.cluster.workers == 256
        and "activations of 256" in text
    )


def test_the_slurm_script_passes_bash_and_shellcheck(tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", SBATCH], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    command = str(shellcheck) if shellcheck.exists() else shutil.which("shellcheck")
    assert command, "shellcheck is part of the dev extra"
    checked = subprocess.run([command, SBATCH], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    bad = tmp_path / "bad.sh"
    bad.write_text("#!/usr/bin/env bash\nrm -rf $1/lib\n")
    assert subprocess.run([command, bad], capture_output=True).returncode == 1  # it does look


SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$OUT/asked"
cp "$RAY_AUTH_TOKEN_PATH" "$OUT/token"; stat -c %a "$RAY_AUTH_TOKEN_PATH" > "$OUT/mode"
[ -z "${LONG:-}" ] || exec sleep 60
exit 7
"""
SCONTROL = """#!/usr/bin/env bash
case "$1" in show) echo node1; echo node2 ;; requeue) echo "$2" > "$OUT/requeued" ;; esac
"""


def sbatch(folder: Path, **more: str) -> subprocess.Popen[bytes]:
    """Runs the script with srun and scontrol that only write down what they are asked."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "OUT": str(folder), "HOME": str(folder),
        "SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_ON_NODE": "64", "SLURM_SUBMIT_DIR": str(folder), **more,
    }  # fmt: skip
    return subprocess.Popen(["bash", SBATCH.absolute(), "CONFIG", "out=a b"], env=environment)


def test_the_slurm_script_asks_for_what_it_was_given_and_ends_with_the_commands_code(tmp_path: Path) -> None:
    assert sbatch(tmp_path).wait(30) == 7
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[asked.index("--address") + 1] == "node1:20123"
    assert asked[asked.index("pretrain") + 1 :] == [
        "CONFIG", "out=a b", "cluster.workers=8", "cluster.gpus_per_worker=1", "cluster.cpus_per_worker=16",
    ]  # fmt: skip
    assert re.fullmatch(r"[0-9a-f]{64}", (tmp_path / "token").read_text())
    assert (tmp_path / "mode").read_text() == "600\n"
    assert list((tmp_path / ".ray").iterdir()) == []  # the token goes with the job


def test_the_slurm_script_queues_itself_again_before_its_time_is_over(tmp_path: Path) -> None:
    job = sbatch(tmp_path, LONG="1")
    while not (tmp_path / "mode").exists():
        assert job.poll() is None
    job.terminate()
    assert job.wait(30) == 0
    assert (tmp_path / "requeued").read_text() == "123\n"
