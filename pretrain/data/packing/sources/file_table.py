"""Millions of files in little memory: their paths lie in one sorted run of bytes."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import compress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.storage import FileInfo

# UTF-8 has the order of Python's texts; so written it also holds names that are no UTF-8
ENCODING = ("utf-8", "surrogatepass")


class TextRun:
    """Texts one behind the other in one piece of memory: their UTF-8 and 8 bytes each."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes, self._starts = bytearray(), array("q", [0])
        for text in texts:
            self.append(text)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def append(self, text: str) -> None:
        """Adds a text at the end."""
        self._bytes += text.encode(*ENCODING)
        self._starts.append(len(self._bytes))

    def encoded(self, number: int) -> bytes:
        """A text as it is kept."""
        return bytes(self._bytes[self._starts[number] : self._starts[number + 1]])

    def __getitem__(self, number: int) -> str:
        return self._bytes[self._starts[number] : self._starts[number + 1]].decode(*ENCODING)

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def order(self) -> np.ndarray:
        """The numbers of the texts, sorted by them; equal ones stay in their order. Shape (len(self),)."""
        return np.asarray(pc.array_sort_indices(self._as_arrow()))

    def first_again(self, order: np.ndarray) -> int | None:
        """The number of the first text that came before; None where all differ. `order`: as `order()` is."""
        texts = self._as_arrow().take(_indices(order))
        equal = np.asarray(pc.equal(texts[1:], texts[:-1]))
        return int(order[1:][equal].min()) if equal.any() else None

    def put_in(self, order: np.ndarray) -> None:
        """Puts the texts in this order."""
        buffers = self._as_arrow().take(_indices(order)).buffers()
        self._starts = array("q", bytes(memoryview(buffers[1])[: 8 * (len(order) + 1)]))
        self._bytes = bytearray(buffers[2] or b"")

    def _as_arrow(self) -> pa.LargeBinaryArray:
        buffers = [None, pa.py_buffer(self._starts), pa.py_buffer(self._bytes)]
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self), buffers)


def _indices(order: np.ndarray) -> pa.Array:
    """Numbers for Arrow; `pa.array` would load pandas for them."""
    buffer = pa.py_buffer(np.ascontiguousarray(order, np.int64))
    return pa.Array.from_buffers(pa.int64(), len(order), [None, buffer])


class FileTable(Mapping[str, FileInfo]):
    """Path -> file, sorted by path. A file takes its path's UTF-8 and 16 bytes.

    Args:
        prefix: what usually stands before the path of a file in its URL; the URL of another file is kept
            beside.
        files: (path, file) of each; paths differ.
    """

    def __init__(self, prefix: str = "", files: Iterable[tuple[str, FileInfo]] = ()) -> None:
        self.prefix = prefix
        self._paths, self._sizes = TextRun(), array("q")
        self._urls: dict[str, str] = {}
        self._versions: dict[str, str] = {}
        self._is_sorted = True
        for path, file in files:
            self.add(path, file.url, file.size_bytes, file.version)

    def add(self, path: str, url: str, size_bytes: int, version: str = "") -> None:
        """Adds a file with another path than the others. The numbers of the others may change."""
        self._paths.append(path)
        self._sizes.append(size_bytes)
        num = len(self._sizes)
        if num > 1 and self._is_sorted:
            self._is_sorted = self._paths.encoded(num - 2) < self._paths.encoded(num - 1)
        if url != self.prefix + path:
            self._urls[path] = url
        if version:
            self._versions[path] = version

    def _sorted(self) -> TextRun:
        """The paths, sorted when they are first asked for."""
        if not self._is_sorted:
            order = self._paths.order()
            self._paths.put_in(order)
            self._sizes = array("q", np.frombuffer(self._sizes, np.int64)[order].tobytes())
            self._is_sorted = True
        return self._paths

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sorted())

    def pairs(self) -> Iterator[tuple[str, FileInfo]]:
        """(path, file) of each; faster than `items`, which looks each path up."""
        return ((path, self._file(number, path)) for number, path in enumerate(self))

    def number(self, path: str) -> int:
        """The place of a path among all, sorted; -1 for one that is not here."""
        paths, key = self._sorted(), path.encode(*ENCODING)
        number = bisect_left(range(len(paths)), key, key=paths.encoded)
        return number if number < len(paths) and paths.encoded(number) == key else -1

    def number_of_url(self, url: str, likely: int = -1) -> int:
        """The number of the file with this URL; -1 for one that is not here.
        `likely`: one that is tried first.
        """
        if 0 <= likely < len(self) and self.url(likely) == url:
            return likely
        if url.startswith(self.prefix):
            number = self.number(url[len(self.prefix) :])
            if number >= 0 and self.url(number) == url:
                return number
        return next((self.number(path) for path, own in self._urls.items() if own == url), -1)

    def path(self, number: int) -> str:
        """The path of a file."""
        return self._sorted()[number]

    def url(self, number: int) -> str:
        """The URL of a file."""
        path = self.path(number)
        return self._urls.get(path) or self.prefix + path

    def size_bytes(self, number: int) -> int:
        """The size of a file."""
        self._sorted()
        return self._sizes[number]

    def _file(self, number: int, path: str) -> FileInfo:
        url = self._urls.get(path) or self.prefix + path
        return FileInfo(url, self._sizes[number], self._versions.get(path, ""))

    def __getitem__(self, path: str) -> FileInfo:
        number = self.number(path)
        if number < 0:
            raise KeyError(path)
        return self._file(number, path)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self.number(path) >= 0


class Chosen(Mapping[str, FileInfo]):
    """Some of the files of a table. `flags`: by number, 1 for these and 0 for the others."""

    def __init__(self, files: FileTable, flags: bytearray) -> None:
        self._files, self._flags = files, flags

    def __len__(self) -> int:
        return self._flags.count(1)

    def __iter__(self) -> Iterator[str]:
        return compress(self._files, self._flags)

    def pairs(self) -> Iterator[tuple[str, FileInfo]]:
        """(path, file) of each; faster than `items`, which looks each path up."""
        return compress(self._files.pairs(), self._flags)

    def __getitem__(self, path: str) -> FileInfo:
        if path not in self:
            raise KeyError(path)
        return self._files[path]

    def __contains__(self, path: object) -> bool:
        number = self._files.number(path) if isinstance(path, str) else -1
        return number >= 0 and self._flags[number] == 1


class Lookup:
    """Files of a table by a text that is made of their path, as its last part: 12 bytes each.

    Args:
        files: of which `flags`, by number, are not 0.
        text_of: of a path.
    """

    def __init__(self, files: FileTable, flags: bytearray, text_of: Callable[[str], str]) -> None:
        self._files, self._text_of = files, text_of
        numbers = np.flatnonzero(np.frombuffer(flags, np.uint8)).astype(np.int32)
        texts = map(text_of, compress(files, flags))
        hashes = np.fromiter(map(hash, texts), np.int64, len(numbers))
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._numbers = hashes[order], numbers[order]

    def get(self, text: str) -> list[str]:
        """The paths that give this text, sorted."""
        key = np.int64(hash(text))
        at, found = int(self._hashes.searchsorted(key)), []
        while at < len(self._hashes) and self._hashes[at] == key:
            found.append(self._files.path(int(self._numbers[at])))
            at += 1
        return [path for path in found if self._text_of(path) == text]

    def last(self, text: str) -> str | None:
        """The last of them; None where there is none."""
        return found[-1] if (found := self.get(text)) else None

    def __contains__(self, text: str) -> bool:
        return bool(self.get(text))
