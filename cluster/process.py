"""How a process that computes is set up: called where commands, calls from Python and workers begin,
before they load torch.
"""

from __future__ import annotations

import os
import sys

# Threads that compute must not spin for long while they wait for each other: threads that decode share their
# cores, and a single other busy program makes endless spinning ten times slower. A few microseconds are
# worth it: steps of small images were seen to be a quarter faster than without.
# OpenMP reads this when torch is loaded.
OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
# Arrow's own pool keeps what was freed, measured at 60 MiB more for the same reading
ARROW = {"ARROW_DEFAULT_MEMORY_POOL": "system"}


def set_up_process() -> None:
    """Sets how threads wait and where Arrow takes memory from, unless the environment says otherwise."""
    for name, value in (OPENMP | ARROW).items():
        os.environ.setdefault(name, value)
    # Arrow reads its variable once, as it is loaded
    if "pyarrow" in sys.modules and os.environ["ARROW_DEFAULT_MEMORY_POOL"] == "system":
        import pyarrow as pa

        pa.set_memory_pool(pa.system_memory_pool())
