"""Files by URL: one helper for data, runs and encoders, local or in any store that fsspec can open.

A plain path is a local file. Writing is atomic for a reader: a local file appears by rename, an object
appears when its upload is complete. What a store fails to do for a moment is tried again
(`cluster.storage.retrying`); errors that stay become `UserError` with the URL in them, so that no traceback
reaches a user who mistyped a bucket.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cluster.errors import UserError
from cluster.secrets import masked
from cluster.storage.listing import find_files, is_glob, passed_over
from cluster.storage.reading import changed, open_input, read_range, use_cache
from cluster.storage.retrying import DEFAULT_PATIENCE, Patience, retries
from cluster.storage.store_calls import FileInfo, explained, info_of, tried
from cluster.storage.stores import filesystem, is_local, local_path, use_options

__all__ = [
    "FileInfo",
    "changed",
    "explained",
    "filesystem",
    "find_files",
    "is_glob",
    "is_local",
    "local_path",
    "open_input",
    "passed_over",
    "read_range",
    "retries",
    "use_cache",
    "use_options",
]

JOB_COPIES = "/runtime_resources/working_dir_files/"  # where Ray unpacks the working tree of a job


def join(url: str, *parts: str) -> str:
    """Appends path parts to a URL or path."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(url: str) -> str:
    """A local path made absolute (workers may run in another directory); other URLs as they are.

    Raises UserError for a relative path within a Ray job that names nothing
    in the job's copy of the working tree.
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
            f"{url} is a relative path, which in a Ray job lies in its copy of the working tree and "
            "vanishes with it; give an absolute path on a file system that all nodes share, or a URL "
            "(s3://bucket/run)"
        )
    return str(path)


def exists(url: str) -> bool:
    """Whether a file or folder is there. Raises UserError when the store refuses to say."""
    return tried("look up", url, info_of) is not None


def is_folder(url: str) -> bool:
    """Whether a URL names a folder that is there. Web servers have none.
    Raises UserError when the store refuses to say.
    """
    if url.startswith(("http://", "https://")):
        return False
    if is_local(url):  # of a link, what it leads to
        return local_path(url).is_dir()
    info = tried("look up", url, info_of)
    return info is not None and info.get("type") == "directory"


def read_bytes(url: str, *, patience: Patience = DEFAULT_PATIENCE, from_data: bool = False) -> bytes:
    """The whole content of a file. Raises UserError when it is missing or may not be read.

    `from_data`: the URL comes from data, so redirects of web servers are checked before they are followed.
    """

    def read(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
        if isinstance(fs, LocalFileSystem):  # whose own way takes twice as long for a small file
            with open(path, "rb", buffering=0) as file:
                return file.read()
        return bytes(fs.cat_file(path))

    return tried("read", url, read, patience, guarded=from_data)


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

    tried("write", url, write)


def is_full(error: BaseException | None) -> bool:
    """Whether a write failed because its storage, or the user's part of it, has no room left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


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

    tried("write", url, write)


def move_to(source: Path, url: str) -> None:
    """Puts a local file at a URL, atomically for readers, and leaves it nowhere else. Renames it where the
    URL is on the same file system; whoever wrote it has synced it.
    """
    if is_local(url):
        target = local_path(url)
        with suppress(OSError):  # of another file system, or what `upload` meets as well and explains
            os.replace(source, target)
            _sync_folder(target.parent)
            return
    upload(source, url)
    source.unlink()


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
        _sync_folder(target.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes a rename in a folder outlast a power cut, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_dirs(url: str) -> None:
    """Makes a folder and its parents; object stores need none."""
    tried("make the folder", url, lambda fs, path: fs.makedirs(path, exist_ok=True))


def remove(url: str) -> None:
    """Removes a file or a folder with all in it; nothing happens when it is not there."""

    def remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
        with suppress(FileNotFoundError):
            fs.rm(path, recursive=True)
        fs.invalidate_cache()

    tried("remove", url, remove)


def names_in(url: str) -> list[str]:
    """The sorted names of files and folders directly in a folder; empty when the folder is not there."""

    def names(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
        fs.invalidate_cache()
        try:
            return list(fs.ls(path, detail=False))
        except FileNotFoundError:
            return []

    return sorted({entry.rstrip("/").rsplit("/", 1)[-1] for entry in tried("list", url, names)})


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
    """Writes a small file in a folder and leaves nothing, before hours of work depend on it.
    Raises UserError.
    """
    probe = join(url, f".write-test-{uuid.uuid4().hex[:8]}")
    try:
        with no_new_folders(url):
            write_bytes(probe, b"fovea")
            remove(probe)
    except UserError as error:
        raise UserError(f"cannot write to {url}: {str(error).rsplit(': ', 1)[-1]}") from error
