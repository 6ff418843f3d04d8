"""How inner loops are compiled."""

from __future__ import annotations

from typing import Any

import numba


def compiled(function: Any) -> Any:
    """Compiles a function by numba on its first use, without the GIL.

    The machine code is kept beside the source or in the user's cache folder, so only the first run on a
    machine waits some seconds for the compiler;
    where neither can be written, every process compiles for itself.
    """
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # no place for the cache
        return numba.njit(nogil=True, error_model="numpy")(function)
