"""GPUs that only Ray believes in: what workers would do with them is recorded,
and their process group is gloo's.

`python -m tests.cluster.recorded_gpus FOLDER` starts a Ray of a head without GPUs and two nodes with two
each, runs workers on it, and writes what each of them saw and what the preflight found to FOLDER/found.json.
`set_up` runs in each of Ray's processes.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

STATE = "RECORDED_GPUS"  # names a file: GPUs that torch can use of each node, and whether workers can
GPUS_OF_A_NODE, CPUS_OF_A_NODE, NUM_NODES = 2, 7, 2
FOUND = "found.json"
WORDS = "built for CUDA 13.2; driver 470.57"
recorded: dict[str, Any] = {}


def set_up() -> None:
    """Has torch and the preflight changed as soon as they are imported;
    most of Ray's processes import neither.
    """
    sys.meta_path.insert(
        0, _AfterImport({"torch": _change_torch, "cluster.training.preflight": _change_preflight})
    )


def look(context: Any, settings: Any) -> list[dict[str, Any]]:
    """What each rank runs: all that was recorded, in the order of ranks."""
    import ray
    import torch

    from pretrain.training.distributed import gathered_objects
    from pretrain.training.recipe import num_decode_threads
    from pretrain.training.settings import DataSettings

    visible = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    mine = recorded | {
        "device": str(context.device),
        "gpu": visible[context.device.index],
        "gpus_of_ray": list(map(str, ray.get_gpu_ids())),
        "node": ray.get_runtime_context().get_node_id(),
        "cpus_of_ray": ray.get_runtime_context().get_assigned_resources().get("CPU"),
        "threads": torch.get_num_threads(),
        "decode_threads": num_decode_threads(DataSettings(url="unused")),
    }
    return gathered_objects(mine)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function with a module as soon as it is imported."""

    def __init__(self, functions: dict[str, Callable[[ModuleType], None]]) -> None:
        self._functions = functions

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        change = self._functions.pop(name, None)
        spec = None if change is None else importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def and_change(module: ModuleType) -> None:
            execute(module)
            assert change is not None
            change(module)

        spec.loader.exec_module = and_change  # type: ignore[method-assign]
        return spec


def _state() -> dict[str, Any]:
    state: dict[str, Any] = json.loads(Path(os.environ[STATE]).read_text())
    return state


def _change_torch(torch: Any) -> None:
    torch.cuda.is_available = lambda: _state()["workers_can"]
    torch.cuda.get_device_name = lambda device=None: "recorded GPU"

    def set_device(device: Any) -> None:
        recorded["device_set"] = str(device)

    torch.cuda.set_device = set_device
    start_group = torch.distributed.init_process_group

    def init_process_group(backend: str, *, device_id: Any = None, **others: Any) -> None:
        recorded.update(
            backend=backend,
            bound_to=str(device_id),
            was_set_before=recorded.get("device_set") == str(device_id),
        )
        start_group("gloo", **others)

    torch.distributed.init_process_group = init_process_group


def _change_preflight(preflight: Any) -> None:
    preflight.usable_gpus = lambda: (_state()["usable"], WORDS)


def main(folder: Path) -> None:
    """Writes what workers saw, and what was refused and why."""
    state = folder / "state.json"
    os.environ[STATE] = str(state)
    import ray
    from ray.cluster_utils import Cluster

    from cluster.errors import UserError
    from cluster.training.workers import Workers, check_cluster, run_workers
    from tests.cluster import recorded_gpus  # not this module, which has another name while it runs

    memory: dict[str, Any] = {"object_store_memory": 10**8}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, **memory})
    for _ in range(NUM_NODES):
        cluster.add_node(num_cpus=CPUS_OF_A_NODE, num_gpus=GPUS_OF_A_NODE, **memory)
    hook = {"worker_process_setup_hook": "tests.cluster.recorded_gpus.set_up"}
    ray.init(address=cluster.address, runtime_env=hook, log_to_driver=False)
    workers = Workers(
        num_workers=NUM_NODES * GPUS_OF_A_NODE,
        storage_url=str(folder / "out"),
        max_failures=2,
        address=cluster.address,
    )
    notes: list[Any] = []

    def outcome(usable: int, workers_can: bool, call: Callable[[], Any]) -> Any:
        state.write_text(json.dumps({"usable": usable, "workers_can": workers_can}))
        try:
            return call()
        except UserError as error:
            return str(error)

    run = lambda: run_workers(recorded_gpus.look, None, workers, on_record=notes.append)  # noqa: E731
    found = {
        "too old": outcome(1, True, lambda: check_cluster(workers)),
        "good": outcome(GPUS_OF_A_NODE, True, run),
        "late": outcome(GPUS_OF_A_NODE, False, run),
        "notes": notes,
    }
    (folder / FOUND).write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
