"""What would fill memory, in a file without a name: it ends with the process, however that ends."""

from __future__ import annotations

import os
import struct
import tempfile

from cluster.errors import UserError

_LENGTH = struct.Struct("<I")
FIRST_BYTES = 512  # read at once; most entries are shorter


class Spool:
    """Entries of bytes, appended one after the other and read again in any order; by one thread."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix=".tmp-")  # noqa: SIM115 (it closes with the object)
        self._end = 0
        self._at_end = True

    def append(self, data: bytes) -> int:
        """Adds an entry and returns its place. Raises UserError where the disk is full."""
        place = self._end
        try:
            if not self._at_end:
                self._file.seek(0, os.SEEK_END)
            self._file.write(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise UserError(
                f"{tempfile.gettempdir()} cannot hold what is known of the images ({error.strerror}); "
                "make room there, or let TMPDIR name another folder"
            ) from error
        self._at_end = True
        self._end += _LENGTH.size + len(data)
        return place

    def read(self, place: int) -> bytes:
        """The entry that lies at a place."""
        self._file.seek(place)
        self._at_end = False
        head = self._file.read(_LENGTH.size + FIRST_BYTES)
        (length,) = _LENGTH.unpack_from(head)
        data = head[_LENGTH.size : _LENGTH.size + length]
        return data + self._file.read(length - len(data)) if len(data) < length else data
