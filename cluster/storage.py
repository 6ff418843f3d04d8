"""Files by URL: one helper for data, runs and encoders, local or in any store that fsspec can open.

A plain path is a local file. Writing is atomic for a reader: a local file appears by rename, an object appears when its
upload is complete. What a store fails to do for a moment is tried again (`cluster.retrying`); errors that stay become
`UserError` with the URL in them, so that no traceback reaches a user who mistyped a bucket.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from cluster.errors import StoreUnavailable, UserError
from cluster.range_cache import RangeCache
from cluster.retrying import (
    DEFAULT_PATIENCE,
    Incomplete,
    Patience,
    http_status,
    in_words,
    is_transient,
    retries,
    retrying,
)
from cluster.s3_ranges import read_s3_range
from cluster.secrets import masked
from cluster.stores import filesystem, is_local, local_path, use_options

__all__ = ["filesystem", "is_local", "local_path", "retries", "use_options"]

Result = TypeVar("Result")

# libraries under fsspec whose exceptions are no OSError: missing credentials, unreachable endpoints, refused requests
STORE_LIBRARIES = ("aiohttp", "azure", "botocore", "gcsfs", "google", "httpx", "httpx2", "huggingface_hub")
OPEN_BLOCK_BYTES = 2**20
JOB_COPIES = "/runtime_resources/working_dir_files/"  # where Ray unpacks the working tree of a job
CHANGED = 412  # the store's answer when a file is no longer the version that was asked for

_cache: RangeCache | None = None


@dataclass(frozen=True)
class FileInfo:
    """One file of a listing. `version` changes when the content does (ETag where the store has one, else the time)."""

    url: str
    size_bytes: int
    version: str


def join(url: str, *parts: str) -> str:
    """Appends path parts to a URL or path."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(url: str) -> str:
    """A local path made absolute (workers may run in another directory); other URLs as they are.

    Raises UserError for a relative path within a Ray job that names nothing in the job's copy of the working tree.
    """
    if not is_local(url):
        return url.rstrip("/")
    path = local_path(url).absolute()
    if (
        JOB_COPIES in str(path)
        and not Path(url.partition("://")[2] or url).expanduser().is_absolute()
        and not path.exists()
    ):
        raise UserError(
            f"{url} is a relative path, which in a Ray job lies in its copy of the working tree and vanishes with it; "
            "give an absolute path on a file system that all nodes share, or a URL (s3://bucket/run)"
        )
    return str(path)


@contextmanager
def explained(action: str, url: str) -> Iterator[None]:
    """Turns the store's errors into a UserError that says what was tried on which URL, without secrets."""
    shown = masked(url)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        status = http_status(error)
        if status in (401, 403) or isinstance(error, PermissionError):
            answer = f" (HTTP {status}: {masked(in_words(error))})" if status else ""
            raise UserError(f"cannot {action} {shown}: permission denied{answer}") from error
        if isinstance(error, FileNotFoundError) and status in (None, 404):
            raise UserError(f"cannot {action} {shown}: it does not exist") from error
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in STORE_LIBRARIES:
            raise
        kind = StoreUnavailable if is_transient(error) else UserError
        raise kind(f"cannot {action} {shown}: {masked(in_words(error))}") from error


def _tried(
    action: str,
    url: str,
    function: Callable[[fsspec.AbstractFileSystem, str], Result],
    patience: Patience = DEFAULT_PATIENCE,
    stopped: Callable[[], bool] = lambda: False,
) -> Result:
    """Calls `function(file system, path)`, again after failures that pass; errors that stay are explained."""
    fs, path = filesystem(url, patient=False)
    with explained(action, url):
        return retrying(lambda: function(fs, path), url=url, patience=patience, stopped=stopped)


def exists(url: str) -> bool:
    """Whether a file or folder is there. Raises UserError when the store refuses to say."""
    return _tried("look up", url, _info) is not None


def _info(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    # fs.exists and fs.isfile would say "no" when the store is only busy
    try:
        return dict(fs.info(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        if http_status(error) in (None, 404):  # fsspec's http says "not found" for every answer that is no success
            return None
        raise


def read_bytes(url: str, *, patience: Patience = DEFAULT_PATIENCE) -> bytes:
    """The whole content of a file. Raises UserError when it is missing or may not be read."""
    return _tried("read", url, lambda fs, path: bytes(fs.cat_file(path)), patience)


def read_range(
    file: FileInfo,
    start: int,
    stop: int,
    *,
    patience: Patience = DEFAULT_PATIENCE,
    stopped: Callable[[], bool] = lambda: False,
) -> bytes:
    """Bytes [start, stop) of a file as it was listed; not tried again once `stopped` says that nobody needs them.

    Raises UserError when the file changed since (another size or version), cannot be read, or the store ignores ranges.
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

    def read(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
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

    data = _tried("read", file.url, read, patience, stopped)
    if cache is not None:
        cache.put(file.url, file.size_bytes, file.version, start, data)
    return data


def use_cache(folder: str | None, limit_gib: float) -> None:
    """Keeps what this process reads from stores by `read_range` in a local folder, up to so many GiB; 0 keeps nothing.

    Raises UserError when a limit is given without a folder, or the folder cannot be written.
    """
    global _cache
    if limit_gib and folder is None:
        raise UserError(f"data.cache_gib={limit_gib:g} needs data.cache_dir, a folder on a local disk")
    if folder is not None and not is_local(folder):
        raise UserError(f"data.cache_dir={masked(folder)} is no local folder; give a path on a local disk")
    _cache = RangeCache(str(local_path(folder)), int(limit_gib * 2**30)) if folder is not None and limit_gib else None


def changed(file: FileInfo) -> str:
    """What is said of a file that is no longer what was listed."""
    return f"{masked(file.url)} changed while it was being read; start again, and leave the data of a run as it is"


def _range_of_version(fs: fsspec.AbstractFileSystem, path: str, start: int, stop: int, version: str) -> bytes:
    # a strong ETag can be made a condition of the request; other versions (times, weak ETags) cannot
    etag = version if version.startswith('"') else None
    if _is_http(fs):
        headers = {**fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"} | ({"If-Match": etag} if etag else {})
        return bytes(fs.cat_file(path, start=start, end=stop, headers=headers))
    if "s3" in fs.protocol:
        data = read_s3_range(fs, path, start, stop, etag)
        if data is not None:
            return data
    if etag and "s3" in fs.protocol:
        return bytes(fsspec.asyn.sync(fs.loop, _s3_range, fs, path, start, stop, etag))
    return bytes(fs.cat_file(path, start=start, end=stop))


def _is_http(fs: fsspec.AbstractFileSystem) -> bool:
    return "https" in fs.protocol  # its class could not be imported where aiohttp is missing


async def _s3_range(fs: Any, path: str, start: int, stop: int, etag: str) -> bytes:
    # s3fs has no conditional reads of its own
    bucket, key, version = fs.split_path(path)
    more = {"VersionId": version} if version else {}
    answer = await fs._call_s3(
        "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", IfMatch=etag, **more
    )
    async with answer["Body"] as body:
        return bytes(await body.read())


def read_json(url: str) -> Any:
    """A JSON file's content. Raises UserError when it is missing or damaged."""
    data = read_bytes(url)
    try:
        return json.loads(data)
    except ValueError as error:
        raise UserError(f"{masked(url)} is not valid JSON: {error}") from error


def write_bytes(url: str, data: bytes) -> None:
    """Writes a whole file so that a reader sees the old content or the new, never a part."""

    def write(fs: fsspec.AbstractFileSystem, path: str) -> None:
        if isinstance(fs, LocalFileSystem):
            with _renamed_when_complete(Path(path)) as temporary:
                temporary.write_bytes(data)
        else:
            fs.pipe_file(path, data)

    _tried("write", url, write)


def write_json(url: str, value: Any) -> None:
    """Writes indented JSON atomically; NaN and infinities are refused because JSON has none."""
    write_bytes(url, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def upload(source: Path, url: str) -> None:
    """Puts a local file at a URL, atomically for readers."""

    def write(fs: fsspec.AbstractFileSystem, path: str) -> None:
        if isinstance(fs, LocalFileSystem):
            with _renamed_when_complete(Path(path)) as temporary:
                shutil.copyfile(source, temporary)
        else:
            fs.put_file(str(source), path)

    _tried("write", url, write)


@contextmanager
def _renamed_when_complete(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    # the name's length does not grow with the target's: file names may be at the system's limit already
    temporary = target.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def open_input(url: str) -> Iterator[IO[bytes]]:
    """Opens a file for reading with random access (range requests in object stores)."""
    if is_local(url):
        with explained("read", url), open(local_path(url), "rb") as file:
            yield file
        return
    info = _tried("read", url, lambda fs, path: _file_info(fs, fs.info(path)))
    with RangedFile(info) as ranged, io.BufferedReader(ranged, OPEN_BLOCK_BYTES) as buffered:
        yield buffered


class RangedFile(io.RawIOBase):
    """A file of a store as a seekable stream; each read is one request that is tried again and checked."""

    def __init__(self, file: FileInfo) -> None:
        self._file, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size_bytes}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._file.size_bytes)
        data = read_range(self._file, min(self._position, stop), stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        start, self._position = min(self._position, self._file.size_bytes), self._file.size_bytes
        return read_range(self._file, start, self._file.size_bytes)


def make_dirs(url: str) -> None:
    """Makes a folder and its parents; object stores need none."""
    _tried("make the folder", url, lambda fs, path: fs.makedirs(path, exist_ok=True))


def remove(url: str) -> None:
    """Removes a file or a folder with all in it; nothing happens when it is not there."""

    def remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
        with suppress(FileNotFoundError):
            fs.rm(path, recursive=True)
        fs.invalidate_cache()

    _tried("remove", url, remove)


def names_in(url: str) -> list[str]:
    """The sorted names of files and folders directly in a folder; empty when the folder is not there."""

    def names(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
        fs.invalidate_cache()
        try:
            return list(fs.ls(path, detail=False))
        except FileNotFoundError:
            return []

    return sorted({entry.rstrip("/").rsplit("/", 1)[-1] for entry in _tried("list", url, names)})


def find_files(url: str, suffix: str) -> list[FileInfo]:
    """The files that a URL names, sorted by URL: one file, a glob, or all under a folder that end in `suffix`.

    Hidden files and those in hidden or underscore folders (`_temporary`) are left out, as Spark and Hugging Face do.
    Returns an empty list when nothing is there.
    """
    return _tried("list", url, lambda fs, path: _find_files(fs, path, suffix))


def _find_files(fs: fsspec.AbstractFileSystem, path: str, suffix: str) -> list[FileInfo]:
    fs.invalidate_cache()
    is_http = _is_http(fs)  # whose "?" begins a query
    if any(sign in path for sign in ("*[" if is_http else "*?[")):
        root, entries = "", _glob(fs, path)
    else:
        info = _info(fs, path)
        if info is None:
            return []
        # a web server does not tell files from folders
        if _is_file(info) and not (is_http and suffix and path.endswith("/")):
            return [_file_info(fs, info)]
        root, entries = path, _walk(fs, path, None) if is_http else fs.find(path, detail=True)
    found = []
    for name, info in entries.items():
        inner = name[len(root) :].strip("/").split("/")
        hidden = any(part.startswith((".", "_")) for part in inner) if root else inner[-1].startswith((".", "_"))
        if _is_file(info) and name.endswith(suffix) and not hidden:
            found.append(_file_info(fs, fs.info(name) if info.get("size") is None else info))
    return sorted(found, key=lambda file: file.url)


def _is_file(info: dict[str, Any]) -> bool:
    # a link to a file, as the cache of Hugging Face is full of, is neither file nor folder to fsspec
    return bool(info["type"] == "file" or (info.get("islink") and os.path.isfile(info["name"])))


def _glob(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any]:
    # fs.glob leaves out what it cannot list, so that a busy store would seem to hold fewer files
    if isinstance(fs, LocalFileSystem):
        return dict(fs.glob(path, detail=True))
    before_magic = re.split(r"[*\[]" if _is_http(fs) else r"[*?\[]", path)[0]
    root = before_magic[: before_magic.rfind("/") + 1]
    depth = None if "**" in path else path[len(root) :].count("/") + 1
    pattern = re.compile(glob_translate(path))
    return {name: info for name, info in _walk(fs, root, depth).items() if pattern.match(name)}


def _walk(fs: fsspec.AbstractFileSystem, root: str, depth: int | None) -> dict[str, Any]:
    entries = {}
    with suppress(FileNotFoundError):  # of the root: nothing is there
        for _, _, files in fs.walk(root, maxdepth=depth, detail=True, on_error="raise"):
            entries.update({info["name"]: info for info in files.values()})
    return entries


def _file_info(fs: fsspec.AbstractFileSystem, info: dict[str, Any]) -> FileInfo:
    if info.get("islink"):  # size and time of what it leads to, which is what is read
        behind = os.stat(info["name"])
        info = {**info, "size": behind.st_size, "mtime": behind.st_mtime}
    versions = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "blob_id", "last_modified", "created")
    version = next((str(info[key]) for key in versions if info.get(key)), "")
    name = info["name"]
    url = name if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(name)
    return FileInfo(url=url, size_bytes=int(info["size"] or 0), version=version)


@contextmanager
def no_new_folders(url: str) -> Iterator[None]:
    """Removes at the end the empty folders that came into being on the way to `url` and in its place.

    Raises UserError when the store refuses to say what is there.
    """
    missing: list[Path] = []
    if is_local(url):  # object stores have no empty folders
        folder = local_path(url).absolute()
        with explained("look up", url):
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in missing:
            with suppress(OSError):  # it was not made, or somebody put something there
                path.rmdir()


def check_writable(url: str) -> None:
    """Writes and removes a small file in a folder, before hours of work depend on it. Raises UserError."""
    probe = join(url, f".write-test-{uuid.uuid4().hex[:8]}")
    try:
        write_bytes(probe, b"fovea")
        remove(probe)
    except UserError as error:
        raise UserError(f"cannot write to {url}: {str(error).rsplit(': ', 1)[-1]}") from error
