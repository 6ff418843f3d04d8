"""How a process is set up: before torch is loaded, by commands, calls from Python and workers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cluster.process import ARROW, OPENMP

WATCHED = """
import os, sys
class Watch:
    def find_spec(self, name, path, target=None):
        if name in ("torch", "pyarrow"):
            print(name, *(os.environ.get(each) for each in {names}))
sys.meta_path.insert(0, Watch())
"""
COMMANDS = {
    "pretrain": "sys.argv = ['pretrain', '--help']; import runpy; "
    "runpy.run_module('pretrain', run_name='__main__')",
    "finetune": "sys.argv = ['finetune', '--help']; import runpy; "
    "runpy.run_module('finetune', run_name='__main__')",
    "calls to pretrain": "from pretrain import pretrain",
    "calls to finetune": "from finetune import predict",
}


@pytest.mark.parametrize(
    "entry",
    [
        "pretrain",
        "calls to finetune",
        *(pytest.param(entry, marks=pytest.mark.slow) for entry in ("finetune", "calls to pretrain")),
    ],
)
def test_threads_and_memory_are_set_before_torch_is_loaded(entry: str) -> None:
    names = [*OPENMP, *ARROW]
    script = WATCHED.format(names=names) + COMMANDS[entry]
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=clean)
    seen = {
        line.split()[0]: line.split()[1:]
        for line in done.stdout.splitlines()
        if line.startswith(("torch ", "pyarrow "))
    }
    assert seen["torch"] == seen["pyarrow"] == [*OPENMP.values(), *ARROW.values()], done.stderr


@pytest.mark.parametrize("order", ["set_up_process(); import pyarrow", "import pyarrow; set_up_process()"])
@pytest.mark.parametrize("asked", [None, "mimalloc"])
def test_arrow_takes_memory_from_the_system_unless_told_otherwise(order: str, asked: str | None) -> None:
    script = (
        f"from cluster.process import set_up_process; {order}; "
        "print(pyarrow.default_memory_pool().backend_name)"
    )
    env = {name: value for name, value in os.environ.items() if name not in ARROW}
    env |= {"ARROW_DEFAULT_MEMORY_POOL": asked} if asked else {}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.strip() == (asked or "system")
