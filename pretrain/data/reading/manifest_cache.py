"""Remembers what the footers of a data set said, for the next start."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cluster import storage
from cluster.errors import UserError
from cluster.storage import FileInfo
from pretrain.data.reading.group_table import Table
from pretrain.data.reading.image_paths import image_root

CACHE_VERSION = 1  # part of the key: a change of what is stored makes old entries unread


class ManifestCache:
    """One .npz file for each (URL, columns), valid while the listing (names, sizes, versions) is equal."""

    _NAMES = ("file_of_group", "group_in_file", "rows_of_group", "bytes_of_group")

    def __init__(
        self, url: str, columns: Sequence[str], files: Sequence[FileInfo], cache_dir: str | None
    ) -> None:
        asked = json.dumps([CACHE_VERSION, [storage.absolute(url)], list(columns), image_root() is not None])
        listing = json.dumps([[file.url, file.size_bytes, file.version] for file in files])
        self._path = (
            Path(cache_dir or _user_cache()) / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.npz"
        )
        self._listing = np.frombuffer(hashlib.sha256(listing.encode()).digest(), dtype=np.uint8)
        self._num_files = len(files)

    def load(self) -> Table | None:
        """The remembered table, or None when there is none, it is out of date or damaged."""
        try:
            with np.load(self._path, allow_pickle=False) as stored:
                if not np.array_equal(stored["listing"], self._listing):
                    return None
                file_of_group, group_in_file, rows, sizes = (stored[name] for name in self._NAMES)
        except Exception:  # whatever a damaged entry makes numpy raise: the footers hold the truth
            return None
        arrays = (file_of_group, group_in_file, rows, sizes)
        fits = all(array.ndim == 1 and len(array) == len(rows) for array in arrays)
        if not fits or (len(rows) and not 0 <= file_of_group.min() <= file_of_group.max() < self._num_files):
            return None
        return arrays

    def save(self, table: Table) -> None:
        """Remembers a table; where it cannot (a read-only home), footers are read again next time."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = dict(zip(self._NAMES, table, strict=True))
        np.savez(buffer, listing=self._listing, **arrays)
        with suppress(UserError, OSError):
            storage.write_bytes(str(self._path), buffer.getvalue())


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the standard says that a relative XDG_CACHE_HOME is to be ignored
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "fovea" / "manifests"
