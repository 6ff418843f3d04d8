"""What is used of Ray beyond its public interface: in one file, refused in one line where it is missing;
scaling by it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ray.train import ScalingConfig

from cluster.training import ray_private
from cluster.training.ray_private import SteppedScaling, max_size

GUARDED = Path("cluster/training/ray_private.py")
SOURCES = sorted(
    path
    for folder in ("cluster", "pretrain", "finetune", "fovea", "tests")
    for path in Path(folder).rglob("*.py")
)


def private_uses(source: str) -> list[str]:
    """The lines of a module that touch what Ray does not call public: modules, names and arguments with an
    underscore before them, `ray.train.v2`, and texts that name such a module or resource."""
    tree = ast.parse(source)
    roots = {"ray"}  # names in this module that hold something of Ray
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                if one.name.partition(".")[0] == "ray":
                    roots.add(one.asname or "ray")
                    found += [node] if _is_private(one.name) else []
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ray":
            roots |= {one.asname or one.name for one in node.names}
            found += [node for one in node.names if _is_private(f"{node.module}.{one.name}")][:1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Call) and _root(node) in roots:
            names = (
                [node.attr] if isinstance(node, ast.Attribute) else [key.arg or "" for key in node.keywords]
            )
            found += [node for name in names if name.startswith("_") and not name.startswith("__")][:1]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            is_module = node.value.startswith("ray.") and _is_private(node.value)
            found += [node] if is_module or "__internal" in node.value else []
    lines = source.splitlines()
    return [f"{node.lineno}: {lines[node.lineno - 1].strip()}" for node in found]


def _is_private(dotted: str) -> bool:
    return dotted.startswith("ray.train.v2") or any(
        part.startswith("_") or part == "internal" for part in dotted.split(".")
    )


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize(
    "line",
    [
        "import ray._private.worker as worker",
        "from ray._raylet import GcsClient",
        "from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer",
        "from ray import _raylet",
        "import ray; ray._private.worker",
        "import ray; ray.init(_temp_dir='/tmp')",
        "import ray.train as train; train.get_context()._inner",
        "'ray._private.runtime_env.packaging'",
        "'node:__internal_head__'",
    ],
)
def test_a_private_interface_is_seen(line: str) -> None:
    assert private_uses(line)


@pytest.mark.parametrize(
    "line", ["import ray; ray.init(num_cpus=1)", "self._ray.get()", "import ray; ray.__version__"]
)
def test_a_public_one_is_none(line: str) -> None:
    assert not private_uses(line)


def test_one_file_alone_touches_private_interfaces() -> None:
    here = Path(__file__).resolve()
    touching = {path: private_uses(path.read_text()) for path in SOURCES if path.resolve() != here}
    assert touching.pop(GUARDED)
    assert {str(path): uses for path, uses in touching.items() if uses} == {}


def test_a_ray_without_a_part_is_refused_in_one_line() -> None:
    script = """
import ray.train.v2.api.data_parallel_trainer as module
del module.DataParallelTrainer._create_default_callbacks
from cluster.errors import UserError
try:
    import cluster.training.ray_private
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    (said,) = done.stdout.splitlines()
    assert (
        "lacks a part" in said and "_create_default_callbacks" in said and ray_private.KNOWN_VERSIONS in said
    )


def test_the_versions_known_to_work_are_those_that_are_installed() -> None:
    wanted = tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
    assert f"ray[default,train]{ray_private.KNOWN_VERSIONS}" in wanted


@pytest.mark.parametrize(
    ("sizes", "room", "size"),
    [([2, 4, 8], 8, 8), ([2, 4, 8], 7, 4), ([2, 4, 8], 3, 2), ([2, 4, 8], 1, 0), ([], 3, 0)],
)
def test_the_largest_possible_size_that_fits(sizes: list[int], room: int, size: int) -> None:
    assert max_size(sizes, room) == size


def test_nodes_hold_whole_workers_and_the_rest_is_left() -> None:
    config: object = ScalingConfig(num_workers=(2, 8), resources_per_worker={"CPU": 4})  # type: ignore[arg-type]
    policy = SteppedScaling(config, [2, 4, 8], lambda: None)
    # 7 CPUs hold one worker, 9 and 8 two each: five workers, of which four divide the work
    assert policy._count_possible_workers({"a": {"CPU": 7.0}, "b": {"CPU": 9.0}, "c": {"CPU": 8.0}}) == 4
    assert policy._count_possible_workers({"a": {"CPU": 7.0}}) == 0
