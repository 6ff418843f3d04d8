"""Seconds of CPU, which say more than the clock on a machine that others use too."""

from __future__ import annotations

import contextlib

import psutil


def cpu_seconds() -> float:
    """Of this process with all its threads, of the children it has and of those it had."""
    own = psutil.Process().cpu_times()
    spent = own.user + own.system + own.children_user + own.children_system
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            spent += times.user + times.system
    return float(spent)
