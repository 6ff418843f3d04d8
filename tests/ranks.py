"""Runs a function on several real processes with a gloo group, for tests of what ranks do together."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 120.0
PRELOADED = [
    "torch.distributed",
    "pretrain.methods.simclr",
    "pretrain.training.loop",
    "finetune.run",
    "finetune.tasks.detection.task",
    "pytest",
]


def run_on_ranks(function: Callable[..., Any], num_ranks: int, *args: Any) -> list[Any]:
    """Calls `function(*args)` on each rank of a gloo group and returns the results, by rank.

    The function belongs to a module, and asks torch.distributed for its rank. Each process computes with one
    thread, so that results do not depend on the machine. Raises RuntimeError with every rank's traceback,
    whole; a rank that is killed or hangs is named.
    """
    # ranks are forked from a server that has imported what they need,
    # which takes several seconds a process otherwise
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory(prefix="fovea-ranks-") as folder:
        ranks = [
            context.Process(target=_one_rank, args=(function, rank, num_ranks, folder, args))
            for rank in range(num_ranks)
        ]
        for process in ranks:
            process.start()
        errors = []
        for rank, process in enumerate(ranks):
            # once one rank has failed the others may wait for it until the group's timeout:
            # they get a moment only
            process.join(5.0 if errors else TIMEOUT_SECONDS)
            path = Path(folder, f"error-{rank}")
            if path.exists():
                errors.append(f"rank {rank}:\n{path.read_text()}")
            elif process.exitcode is None:
                errors.append(f"rank {rank} did not end")
            elif process.exitcode != 0:
                errors.append(f"rank {rank} ended with exit code {process.exitcode}")
        for process in ranks:
            if process.is_alive():
                process.kill()
                process.join()
        if errors:
            raise RuntimeError("\n".join(errors))
        return [pickle.loads(Path(folder, f"result-{rank}").read_bytes()) for rank in range(num_ranks)]


def _one_rank(
    function: Callable[..., Any], rank: int, num_ranks: int, folder: str, args: tuple[Any, ...]
) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    try:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=num_ranks,
            timeout=timedelta(seconds=60),
        )
        result = function(*args)
        Path(folder, f"result-{rank}").write_bytes(pickle.dumps(result))
        distributed.barrier()  # nobody leaves while another still speaks with it
        distributed.destroy_process_group()
    except BaseException:
        Path(folder, f"error-{rank}").write_text(traceback.format_exc())
        os._exit(1)


@contextmanager
def contiguous_messages() -> Iterator[None]:
    """Raises for what ranks send or receive in strides that NCCL refuses and gloo does not mind."""
    import torch
    from torch import distributed as dist

    names = ("all_reduce", "all_gather", "broadcast", "reduce_scatter_tensor", "all_gather_into_tensor")
    as_they_are = {name: getattr(dist, name) for name in names}

    def checked(name: str) -> Callable[..., Any]:
        def send(*args: Any, **others: Any) -> Any:
            for value in args:
                for tensor in value if isinstance(value, list) else [value]:
                    if isinstance(tensor, torch.Tensor):
                        dense = tensor.is_contiguous() or (
                            tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
                        )
                        assert dense, f"{name}: {tuple(tensor.shape)} in strides of {tensor.stride()}"
            return as_they_are[name](*args, **others)

        return send

    try:
        for name in names:
            setattr(dist, name, checked(name))
        yield
    finally:
        for name, function in as_they_are.items():
            setattr(dist, name, function)
