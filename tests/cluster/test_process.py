"""How a process is set up: before torch is loaded, by commands, calls from Python and workers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cluster.process import ARROW, MALLOC, OPENMP

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
    names = [*OPENMP, *ARROW, *MALLOC]
    script = WATCHED.format(names=names) + COMMANDS[entry]
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=clean)
    seen = {
        line.split()[0]: line.split()[1:]
        for line in done.stdout.splitlines()
        if line.startswith(("torch ", "pyarrow "))
    }
    assert seen["torch"] == seen["pyarrow"] == list((OPENMP | ARROW | MALLOC).values()), done.stderr


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


HEAPS = """
import threading
from cluster.process import set_up_process
{setup}
done = threading.Barrier(9)
held = []
def work():
    held.append([bytearray(50_000) for _ in range(20)])
    done.wait()
for _ in range(8):
    threading.Thread(target=work, daemon=True).start()
done.wait()
begins = [int(line.split("-")[0], 16) for line in open("/proc/self/maps") if len(line.split()) == 5]
print(sum(begin % 2**26 == 0 for begin in begins))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize(("setup", "asked", "heaps"), [("", None, 8), ("set_up_process()", None, 1),
                                                       ("set_up_process()", "6", 5)])  # fmt: skip
def test_threads_share_two_heaps_unless_told_otherwise(setup: str, asked: str | None, heaps: int) -> None:
    env = {name: value for name, value in os.environ.items() if name not in MALLOC}
    env |= {"MALLOC_ARENA_MAX": asked} if asked else {}
    command = [sys.executable, "-c", HEAPS.format(setup=setup)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    # of them all but the first lie at multiples of 64 MiB
    assert int(done.stdout) >= heaps if not setup else int(done.stdout) == heaps
