"""Ends a command of a pipeline when the pipeline's driver is gone,
so that the next driver meets no second writer.

Run as a small process of its own, with only the standard library: it reads the id of the command's process
group from its standard input, which closes however its driver ends, then asks the group to stop,
and ends it when it does not.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

GRACE_SECONDS = 60.0  # for a checkpoint


def main() -> None:
    """Waits for the end of the driver."""
    text = sys.stdin.buffer.read().strip()
    if text:
        end(int(text))


def end(group: int) -> None:
    """Ends a process group, kindly first."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.1)
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
