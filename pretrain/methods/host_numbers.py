"""Numbers of a module's state that the host decides by, without waiting for the device to say them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class HostNumber:
    """A number on the host that stands for a buffer of a module.

    Reading a tensor on an accelerator waits until the device is done with all that came before. So the
    number is read from the buffer once, and again when something else has written the buffer (a checkpoint
    that is loaded), but not after `set`.

    Args:
        module: whose buffer it is; the module may be moved and cast.
        name: of the buffer, which has one entry unless `read` says what is read.
        read: the number of the buffer's tensor.
    """

    def __init__(self, module: nn.Module, name: str, read: Callable[[Tensor], Any] = float) -> None:
        self._module, self._name, self._read = module, name, read
        self._known: tuple[Tensor, int] | None = None
        self._number: Any = None

    @property
    def _buffer(self) -> Tensor:
        return self._module.get_buffer(self._name)

    def get(self) -> Any:
        """The number."""
        buffer = self._buffer
        if self._known is None or self._known[0] is not buffer or self._known[1] != buffer._version:
            self._number = self._read(buffer)
            self._known = buffer, buffer._version
        return self._number

    def set(self, number: float) -> None:
        """Writes the number into the buffer."""
        self._buffer.fill_(number)
        self.follow(number)

    def follow(self, number: Any) -> None:
        """The number of the buffer as it is now, for who has written it."""
        self._number, self._known = number, (self._buffer, self._buffer._version)
