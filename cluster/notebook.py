"""One line of progress in a notebook's cell that changes in place; it needs nothing beside IPython itself."""

from __future__ import annotations

import sys
from typing import Any


class NotebookLine:
    """A text in the output of the cell that runs, replaced by the next one."""

    def __init__(self) -> None:
        self._handle: Any = None

    @staticmethod
    def here() -> NotebookLine | None:
        """A line where this process is the kernel of a notebook; None elsewhere, in IPython on a terminal, too."""
        ipython = sys.modules.get("IPython")  # a kernel has it loaded
        shell = None if ipython is None else ipython.get_ipython()
        return NotebookLine() if hasattr(shell, "kernel") else None

    def show(self, text: str) -> None:
        """Shows `text` in place of what was shown before."""
        from IPython.display import display

        data = {"text/plain": text}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)
