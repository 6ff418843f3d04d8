"""Parts of files: a range of bytes of the version that was listed,
and files of a store as seekable streams.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import fsspec

from cluster.errors import UserError
from cluster.secrets import masked
from cluster.storage.range_cache import RangeCache
from cluster.storage.retrying import DEFAULT_PATIENCE, Incomplete, Patience, http_status
from cluster.storage.s3_ranges import read_s3_range
from cluster.storage.store_calls import FileInfo, explained, file_info, is_http, tried
from cluster.storage.stores import is_local, local_path

OPEN_BLOCK_BYTES = 2**20
CHANGED = 412  # the store's answer when a file is no longer the version that was asked for

_cache: RangeCache | None = None


def read_range(
    file: FileInfo,
    start: int,
    stop: int,
    *,
    patience: Patience = DEFAULT_PATIENCE,
    stopped: Callable[[], bool] = lambda: False,
) -> bytes | memoryview:
    """Bytes [start, stop) of a file as it was listed; not tried again once
    `stopped` says that nobody needs them.

    Raises UserError when the file changed since (another size or version), cannot be read,
    or the store ignores ranges.
    """
    assert 0 <= start <= stop <= file.size_bytes, (file, start, stop)
    if start == stop:
        return b""
    # without a version nobody could tell when what is kept is out of date
    cache = _cache if file.version and not is_local(file.url) else None
    if cache is not None:
        kept = cache.get(file.url, file.size_bytes, file.version, start, stop)
        if kept is not None:
            return kept

    def read(fs: fsspec.AbstractFileSystem, path: str) -> bytes | memoryview:
        try:
            data = _range_of_version(fs, path, start, stop, file.version)
        except Exception as error:
            if http_status(error) in (CHANGED, 416):
                raise UserError(changed(file)) from error
            raise
        if len(data) > stop - start:
            raise UserError(
                f"{masked(file.url)}: the server sends the whole file where a part is asked for; "
                "copy the data to a store that can read ranges"
            )
        if len(data) < stop - start:
            raise Incomplete(f"{len(data)} of {stop - start} bytes came")
        return data

    data = tried("read", file.url, read, patience, stopped)
    if cache is not None:
        cache.put(file.url, file.size_bytes, file.version, start, data)
    return data


def use_cache(folder: str | None, limit_gib: float) -> None:
    """Keeps what this process reads from stores by `read_range` in a local folder, up to so many GiB;
    0 keeps nothing.

    Raises UserError when a limit is given without a folder, or the folder cannot be written.
    """
    global _cache
    if limit_gib and folder is None:
        raise UserError(f"data.cache_gib={limit_gib:g} needs data.cache_dir, a folder on a local disk")
    if folder is not None and not is_local(folder):
        raise UserError(
            f"data.cache_dir={masked(folder)} is not a local folder; give a path on a local disk"
        )
    _cache = (
        RangeCache(str(local_path(folder)), int(limit_gib * 2**30))
        if folder is not None and limit_gib
        else None
    )


def changed(file: FileInfo) -> str:
    """What is said of a file that is no longer what was listed."""
    return (
        f"{masked(file.url)} changed while it was being read; start again, and leave the data of a run "
        "as it is"
    )


def _range_of_version(
    fs: fsspec.AbstractFileSystem, path: str, start: int, stop: int, version: str
) -> bytes | memoryview:
    # a strong ETag can be made a condition of the request; other versions (times, weak ETags) cannot
    etag = version if version.startswith('"') else None
    if is_http(fs):
        headers = {**fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"} | (
            {"If-Match": etag} if etag else {}
        )
        return bytes(fs.cat_file(path, start=start, end=stop, headers=headers))
    if "s3" in fs.protocol:
        data = read_s3_range(fs, path, start, stop, etag)
        if data is not None:
            return data
    if etag and "s3" in fs.protocol:
        return bytes(fsspec.asyn.sync(fs.loop, _s3_range, fs, path, start, stop, etag))
    return bytes(fs.cat_file(path, start=start, end=stop))


async def _s3_range(fs: Any, path: str, start: int, stop: int, etag: str) -> bytes:
    # s3fs has no conditional reads of its own
    bucket, key, version = fs.split_path(path)
    more = {"VersionId": version} if version else {}
    answer = await fs._call_s3(
        "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", IfMatch=etag, **more
    )
    async with answer["Body"] as body:
        return bytes(await body.read())


@contextmanager
def open_input(url: str) -> Iterator[IO[bytes]]:
    """Opens a file for reading with random access (range requests in object stores)."""
    if is_local(url):
        with explained("read", url), open(local_path(url), "rb") as file:
            yield file
        return
    info = tried("read", url, lambda fs, path: file_info(fs, fs.info(path)))
    with RangedFile(info) as ranged, io.BufferedReader(ranged, OPEN_BLOCK_BYTES) as buffered:
        yield buffered


class PositionedFile(io.RawIOBase):
    """A readable file of known size with a position; what is read there is for others to say."""

    def __init__(self, size_bytes: int) -> None:
        self._size, self._position = size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position


class RangedFile(PositionedFile):
    """A file of a store as a seekable stream; each read is one request that is tried again and checked."""

    def __init__(self, file: FileInfo) -> None:
        super().__init__(file.size_bytes)
        self._file = file

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._file.size_bytes)
        data = read_range(self._file, min(self._position, stop), stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        start, self._position = min(self._position, self._file.size_bytes), self._file.size_bytes
        return bytes(read_range(self._file, start, self._file.size_bytes))
