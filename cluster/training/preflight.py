"""Before workers are booked on several nodes:
can each of them do its part? Problems are reported node by node.

A small task on every node writes to the storage, reads a first piece of the data, and tells what is
installed, how many GPUs it sees and how much disk is free. It asks for no CPU, so it runs on a busy cluster
too. What the answers mean is decided by `problems`, a pure function.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cluster import storage
from cluster.durations import duration
from cluster.errors import UserError
from cluster.secrets import masked
from cluster.storage import FileInfo, stores

# a run mixes badly over versions of these
PACKAGES = ("ray", "torch", "torchvision", "numpy", "pyarrow", "timm", "lightly")
CODE = "Fovea's code"
DISK_GIB = 2.0
TIMEOUT_SECONDS = 180.0
HEADER_BYTES = 4


@dataclass(frozen=True)
class Wanted:
    """What each node must be able to do."""

    folder: str  # in the storage of the run, with a file `driver` in it
    token: str  # which that file holds
    data: tuple[FileInfo, ...]  # a file of each data set
    options: Mapping[str, Mapping[str, Any]]  # of the stores of these URLs


@dataclass(frozen=True)
class NodeReport:
    """What a node reports about itself. `errors` are its own words for what it cannot do."""

    name: str
    versions: Mapping[str, str | None]
    gpus_visible: int  # to torch, in a process that may see all
    gpus_promised: float  # by Ray, of what a worker asks for
    disk_free_gib: float
    disk: str
    errors: tuple[str, ...] = ()
    gpu_words: str = ""  # what torch was built for, and what it reports about the driver


def check_nodes(
    storage_url: str,
    data_urls: Sequence[str],
    resources_per_worker: Mapping[str, float],
    *,
    disk_gib: float = DISK_GIB,
) -> int:
    """Looks at every node that may hold a worker, and at this one; returns their number.
    Needs a connection to Ray.

    Raises UserError that lists all that is wrong, node by node.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    wanted_nodes = [
        node
        for node in nodes
        if node["NodeID"] == here
        or all(node["Resources"].get(name, 0.0) >= each for name, each in resources_per_worker.items())
    ]
    token = uuid.uuid4().hex
    folder = storage.join(storage.absolute(storage_url), f".preflight-{uuid.uuid4().hex[:12]}")
    first = [storage.find_files(url, "")[:1] for url in data_urls]
    urls = [storage_url, *data_urls]
    wanted = Wanted(folder, token, tuple(file for files in first for file in files), _options(urls))
    storage.write_bytes(storage.join(folder, "driver"), token.encode())
    try:
        reports = _ask(wanted_nodes, wanted, wants_gpus="GPU" in resources_per_worker)
        seen = storage.names_in(folder)
    finally:
        with suppress(UserError):
            storage.remove(folder)
    found = problems(reports, seen, storage_url=storage_url, disk_gib=disk_gib)
    if found:
        raise UserError("the cluster is not ready; nothing was started: " + "; ".join(found))
    return len(reports)


def problems(
    reports: Sequence[NodeReport], seen: Sequence[str], *, storage_url: str, disk_gib: float = DISK_GIB
) -> list[str]:
    """All that is wrong, a sentence each. `seen` are the names of the files that nodes wrote,
    as this node sees them.

    Versions are compared with those of the first report, which is this node's.
    """
    found = []
    reference = reports[0].versions
    for report in reports:
        where = f"node {report.name}: "
        found += [where + error for error in report.errors]
        if not report.versions:
            continue  # it said nothing else
        for package, here in reference.items():
            there = report.versions.get(package)
            if there is None and here is not None:
                found.append(f"{where}{package} is missing (here: {here})")
            elif there != here:
                found.append(f"{where}{package} {there}, but {here or 'none'} here")
        if report.gpus_visible < report.gpus_promised:
            found.append(
                f"{where}Ray promises {report.gpus_promised:g} GPUs, torch can use {report.gpus_visible} "
                f"({report.gpu_words})"
            )
        if report.disk_free_gib < disk_gib:
            found.append(
                f"{where}{report.disk_free_gib:.1f} GiB free in {report.disk}, at least {disk_gib:g} are "
                "needed"
            )
        if not report.errors and report.name not in seen:
            found.append(
                f"{where}what it writes to {masked(storage_url)} is not seen here; all must share one "
                "storage"
            )
    return found


def _ask(nodes: list[dict[str, Any]], wanted: Wanted, *, wants_gpus: bool) -> list[NodeReport]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    nodes = sorted(nodes, key=lambda node: node["NodeID"] != here)
    names = _names([str(node["NodeManagerHostname"]) for node in nodes])
    remote: Any = ray.remote(look)
    asked = {}
    for name, node in zip(names, nodes, strict=True):
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = remote.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
        gpus = node["Resources"].get("GPU", 0.0) if wants_gpus else 0.0
        asked[task.remote(name, gpus, wanted)] = name
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=TIMEOUT_SECONDS)
    reports = [_silent(asked[task], f"no answer in {duration(TIMEOUT_SECONDS)}") for task in late]
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    for task in ready:
        try:
            reports.append(ray.get(task))
        except ray.exceptions.RayError as error:
            text = str(error).strip().splitlines()
            # one that went meanwhile is no part of the cluster
            if nodes[names.index(asked[task])]["NodeID"] in alive:
                reports.append(_silent(asked[task], masked(text[-1] if text else type(error).__name__)))
    return sorted(reports, key=lambda report: names.index(report.name))


def look(name: str, gpus_promised: float, wanted: Wanted) -> NodeReport:
    """What one node sees and can do; runs there."""
    for url, options in wanted.options.items():
        stores.use_options(url, options)
    errors = []
    try:
        if storage.read_bytes(storage.join(wanted.folder, "driver")) != wanted.token.encode():
            errors.append(
                f"{masked(wanted.folder)} is another folder than the driver's; all must share one storage"
            )
        storage.write_bytes(storage.join(wanted.folder, name), b"")
    except UserError as error:
        errors.append(str(error))
    for file in wanted.data:
        try:
            storage.read_range(file, 0, min(HEADER_BYTES, file.size_bytes))
        except UserError as error:
            errors.append(str(error))
    disk = tempfile.gettempdir()
    num_gpus, gpu_words = usable_gpus() if gpus_promised else (0, "")
    return NodeReport(
        name=name,
        versions=versions(),
        gpus_visible=num_gpus,
        gpus_promised=gpus_promised,
        gpu_words=gpu_words,
        disk_free_gib=shutil.disk_usage(disk).free / 2**30,
        disk=disk,
        errors=tuple(errors),
    )


def versions() -> dict[str, str | None]:
    """What is installed here, None for what is not; nothing of it is imported."""
    found: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found[CODE] = _code_fingerprint()
    return found


def _code_fingerprint() -> str:
    """Of the packages as they would be imported, so that a node with an older copy is noticed."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for package in ("cluster", "pretrain", "finetune"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


GPU_PROBE = """
import json, warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import torch
    num = torch.cuda.device_count() if torch.cuda.is_available() else 0
built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs alone"
words = f"torch {torch.__version__}, built for {built_for}"
words += "".join(f"; {str(one.message).splitlines()[0]}" for one in said if "CUDA" in str(one.message))
print(json.dumps([num, words]))
"""


def usable_gpus() -> tuple[int, str]:
    """GPUs of this node that torch can use, and in words what it is built for and the driver's version.

    In a process of its own: within a task that asked for none, Ray hides them.
    """
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", GPU_PROBE], capture_output=True, text=True, timeout=120, env=environment
        )
        num, words = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return 0, f"torch could not be asked: {error}"
    driver = _driver()
    return int(num), f"{words}; {f'driver {driver}' if driver else 'no NVIDIA driver answers'}"


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(
            query, capture_output=True, text=True, timeout=30, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0].strip() if lines else None


def _options(urls: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    return {
        url: stores.options_of(url) for url in urls if not stores.is_local(url) and stores.options_of(url)
    }


def _names(hosts: Sequence[str]) -> list[str]:
    """Host names, numbered where several nodes have the same."""
    counts, seen = Counter(hosts), Counter[str]()
    names = []
    for host in hosts:
        seen[host] += 1
        names.append(f"{host}-{seen[host]}" if counts[host] > 1 else host)
    return names


def _silent(name: str, error: str) -> NodeReport:
    return NodeReport(name, {}, 0, 0.0, 0.0, "", (error,))
