"""A cache on a local disk of what was read from stores: bounded in size, shared by the processes of a node.

Each range is one file, named by a hash of (URL, size, version, range), so what belongs to an older version
of a file is never found again. A file appears by rename and carries a checksum, so a process that is killed
while it writes, or a machine that loses power, leaves nothing that would be read. The file's time is that of
its last use; the least recently used go first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
import time
import uuid
import zlib
from contextlib import suppress
from pathlib import Path

from cluster.errors import UserError

log = logging.getLogger(__name__)

MAGIC = b"FOVEA-R1"
HEADER_BYTES = len(MAGIC) + 4
# room is made down to this fraction of the limit, and looked for whenever a process wrote that fraction of
# it: the ranks of a node, which do not count each other's writes in between, together stay below the limit
KEPT_FRACTION, LOOK_FRACTION = 0.9, 1 / 128
ABANDONED_SECONDS = 3600  # a temporary file of this age was left by a process that died


class RangeCache:
    """Ranges of files in a folder.

    Args:
        folder: on a local disk; made when missing. Several processes may share it.
        limit_bytes: what it may take.

    Raises UserError when the folder cannot be made or written.
    """

    def __init__(self, folder: str, limit_bytes: int) -> None:
        self.folder, self._limit = Path(folder).expanduser(), limit_bytes
        self._unseen = limit_bytes  # bytes written since the last look: look at the first write
        self._lock = threading.Lock()
        self._has_warned = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".tmp-{uuid.uuid4().hex}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"data.cache_dir={folder} cannot be written: {error.strerror or error}"
            ) from error

    def get(self, url: str, size_bytes: int, version: str, start: int, stop: int) -> bytes | None:
        """The range when it is there and whole, else None."""
        path = self._path(url, size_bytes, version, start, stop)
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        data = stored[HEADER_BYTES:]
        if len(data) != stop - start or stored[:HEADER_BYTES] != _header(data):
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):  # another process may just have made room
            os.utime(path)
        return data

    def put(self, url: str, size_bytes: int, version: str, start: int, data: bytes | memoryview) -> None:
        """Keeps a range, and makes room when the folder is full.
        A disk that fails costs the cache, not the run.
        """
        path = self._path(url, size_bytes, version, start, start + len(data))
        if len(data) > self._limit * LOOK_FRACTION * 8:
            return  # would push out all others
        temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
        try:
            path.parent.mkdir(exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(_header(data))
                file.write(data)
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            if not self._has_warned:
                self._has_warned = True
                log.warning(
                    "data.cache_dir=%s: cannot keep what was read: %s", self.folder, error.strerror or error
                )
            return
        with self._lock:
            self._unseen += HEADER_BYTES + len(data)
            if self._unseen < self._limit * LOOK_FRACTION:
                return
            self._unseen = 0
        self.make_room()

    def make_room(self) -> None:
        """Removes what was not used for longest, down to 90 % of the limit."""
        with suppress(OSError), open(self.folder / ".lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # who wants to write on waits until there is room
            files = []
            for path in self.folder.glob("??/*"):  # temporary files as well, which count
                with suppress(OSError):
                    stat = path.stat()
                    if path.name.startswith(".tmp-") and time.time() - stat.st_mtime > ABANDONED_SECONDS:
                        path.unlink()
                    else:
                        files.append((stat.st_mtime_ns, stat.st_size, path))
            excess = sum(size for _, size, _ in files) - self._limit * KEPT_FRACTION
            for _, size, path in sorted(files):
                if excess <= 0:
                    break
                with suppress(OSError):
                    path.unlink()
                    excess -= size

    def _path(self, url: str, size_bytes: int, version: str, start: int, stop: int) -> Path:
        key = hashlib.sha256(json.dumps([url, size_bytes, version, start, stop]).encode()).hexdigest()
        return self.folder / key[:2] / key[2:]


def _header(data: bytes | memoryview) -> bytes:
    return MAGIC + zlib.crc32(data).to_bytes(4, "little")
