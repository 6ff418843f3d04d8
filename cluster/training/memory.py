"""How much of the machine's memory this process has used."""

from __future__ import annotations

import resource
import sys

GIB = 2**30


def peak_bytes() -> int:
    """The most memory that this process was resident with, so far."""
    # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
