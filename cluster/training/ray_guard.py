"""Removes what a private Ray leaves behind, also when the process that started it is killed.

Run as a small process of its own, with only the standard library: it waits until its standard input closes,
which happens however its parent ends, then ends every process that still has a file of Ray's folder open,
and removes the folder. Ray's own processes follow a dead driver within seconds,
but two agents of them were seen to stay for a minute.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_SECONDS = 5.0


def start_guard(folder: Path) -> subprocess.Popen[bytes]:
    """Starts the guard of a folder; closing its standard input sets it to work,
    and it ends when it is done.
    """
    # -S -E: it imports nothing but the standard library; a session of its own keeps Ctrl-C away from it
    command = [sys.executable, "-S", "-E", __file__, str(folder), str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def processes_of(folder: str, spared: int) -> list[int]:
    """The ids of the processes other than `spared` that have a file of the folder open,
    as all of Ray's have their logs.

    Their environment would be the plainer mark, but Ray writes process titles over it.
    Empty on systems without /proc.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(link).startswith(f"{folder}/") for link in (entry / "fd").iterdir()):
                found.append(int(entry.name))
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return [process for process in found if process != spared]


def clean_up(folder: str, driver: int) -> None:
    """Ends the folder's processes, kindly first, and removes the folder.
    The driver may live on: it is spared.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    # most follow a dead driver by themselves
    while processes_of(folder, spared=driver) and time.monotonic() < deadline:
        time.sleep(0.2)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes_of(folder, spared=driver):
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue
        time.sleep(0.5 if processes_of(folder, spared=driver) else 0.0)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    clean_up(sys.argv[1], driver=int(sys.argv[2]))
