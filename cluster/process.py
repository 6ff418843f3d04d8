"""How a process that computes is set up: called where commands, calls from Python and workers begin,
before they load torch.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

# Threads that compute must not spin for long while they wait for each other: threads that decode share their
# cores, and a single other busy program makes endless spinning ten times slower. A few microseconds are
# worth it: steps of small images were seen to be a quarter faster than without.
# OpenMP reads this when torch is loaded.
OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
# Arrow's own pool keeps what was freed, measured at 60 MiB more for the same reading
ARROW = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
# glibc gives threads heaps of their own, up to eight a core, and each keeps pieces of what its threads once
# needed: a worker, whose evaluations start threads, grew by 20 % in 20,000 steps, and with two heaps not.
# Read as a process starts, so workers of a Ray that this process starts have it from there.
MALLOC = {"MALLOC_ARENA_MAX": "2"}
M_ARENA_MAX = -8  # of malloc.h


def set_up_process() -> None:
    """Sets how threads wait and where memory is taken from, unless the environment says otherwise."""
    for name, value in (OPENMP | ARROW | MALLOC).items():
        os.environ.setdefault(name, value)
    with suppress(AttributeError, OSError, ValueError):  # of another C library, or a number that is none
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, int(os.environ["MALLOC_ARENA_MAX"]))
    # Arrow reads its variable once, as it is loaded
    if "pyarrow" in sys.modules and os.environ["ARROW_DEFAULT_MEMORY_POOL"] == "system":
        import pyarrow as pa

        pa.set_memory_pool(pa.system_memory_pool())


def give_back_memory() -> None:
    """Hands what was freed back to the system, where the C library can (glibc). By itself it keeps pages of
    each thread's own heap, more from one evaluation to the next.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
