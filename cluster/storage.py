"""Files by URL: one helper for data, runs and encoders, local or in any store that fsspec can open.

A plain path is a local file. Writing is atomic for a reader: a local file appears by rename, an object appears when its
upload is complete. Errors of the store become `UserError` with the URL in them, so that no traceback reaches a user who
mistyped a bucket.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cluster.errors import UserError

# libraries under fsspec whose exceptions are no OSError: missing credentials, unreachable endpoints, refused requests
STORE_LIBRARIES = ("aiohttp", "azure", "botocore", "gcsfs", "google", "huggingface_hub")


@dataclass(frozen=True)
class FileInfo:
    """One file of a listing. `version` changes when the content does (ETag where the store has one, else the time)."""

    url: str
    size_bytes: int
    version: str


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path inside it. Raises UserError for an unknown or not installed protocol."""
    if not url:
        raise UserError("an empty URL; give a path or something like s3://bucket/folder")
    try:
        fs, path = fsspec.core.url_to_fs(os.path.expanduser(url) if "://" not in url else url)
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot open {url}: {error}") from error
    return fs, path


def is_local(url: str) -> bool:
    """True for plain paths and file:// URLs."""
    return "://" not in url or url.startswith(("file://", "local://"))


def local_path(url: str) -> Path:
    """The path of a local URL."""
    assert is_local(url), url
    return Path(filesystem(url)[1])


def join(url: str, *parts: str) -> str:
    """Appends path parts to a URL or path."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(url: str) -> str:
    """A local path made absolute (workers may run in another directory); other URLs as they are."""
    return str(local_path(url).absolute()) if is_local(url) else url.rstrip("/")


@contextmanager
def explained(action: str, url: str) -> Iterator[None]:
    """Turns the store's errors into a UserError that says what was tried on which URL."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"cannot {action} {url}: it does not exist") from error
    except PermissionError as error:
        raise UserError(f"cannot {action} {url}: permission denied") from error
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise UserError(f"cannot {action} {url}: {reason}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in STORE_LIBRARIES:
            raise
        raise UserError(f"cannot {action} {url}: {str(error) or type(error).__name__}") from error


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = filesystem(url)
    with explained("look up", url):
        return bool(fs.exists(path))


def read_bytes(url: str) -> bytes:
    """The whole content of a file. Raises UserError when it is missing or may not be read."""
    fs, path = filesystem(url)
    with explained("read", url):
        data = fs.cat_file(path)
    assert isinstance(data, bytes)
    return data


def read_json(url: str) -> Any:
    """A JSON file's content. Raises UserError when it is missing or damaged."""
    data = read_bytes(url)
    try:
        return json.loads(data)
    except ValueError as error:
        raise UserError(f"{url} is not valid JSON: {error}") from error


def write_bytes(url: str, data: bytes) -> None:
    """Writes a whole file so that a reader sees the old content or the new, never a part."""
    fs, path = filesystem(url)
    with explained("write", url):
        if isinstance(fs, LocalFileSystem):
            with _renamed_when_complete(Path(path)) as temporary:
                temporary.write_bytes(data)
        else:
            fs.pipe_file(path, data)


def write_json(url: str, value: Any) -> None:
    """Writes indented JSON atomically; NaN and infinities are refused because JSON has none."""
    write_bytes(url, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def upload(source: Path, url: str) -> None:
    """Puts a local file at a URL, atomically for readers."""
    fs, path = filesystem(url)
    with explained("write", url):
        if isinstance(fs, LocalFileSystem):
            with _renamed_when_complete(Path(path)) as temporary:
                shutil.copyfile(source, temporary)
        else:
            fs.put_file(str(source), path)


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
    fs, path = filesystem(url)
    with explained("read", url), fs.open(path, "rb") as file:
        yield file


def make_dirs(url: str) -> None:
    """Makes a folder and its parents; object stores need none."""
    fs, path = filesystem(url)
    with explained("make the folder", url):
        fs.makedirs(path, exist_ok=True)


def remove(url: str) -> None:
    """Removes a file or a folder with all in it; nothing happens when it is not there."""
    fs, path = filesystem(url)
    with explained("remove", url), suppress(FileNotFoundError):
        fs.rm(path, recursive=True)
    fs.invalidate_cache()


def names_in(url: str) -> list[str]:
    """The sorted names of files and folders directly in a folder; empty when the folder is not there."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    with explained("list", url):
        try:
            entries = fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
    return sorted({entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries})


def find_files(url: str, suffix: str) -> list[FileInfo]:
    """The files that a URL names, sorted by URL: one file, a glob, or all under a folder that end in `suffix`.

    Hidden files and those in hidden or underscore folders (`_temporary`) are left out, as Spark and Hugging Face do.
    Returns an empty list when nothing is there.
    """
    fs, path = filesystem(url)
    fs.invalidate_cache()
    with explained("list", url):
        if any(sign in path for sign in "*?["):
            entries = fs.glob(path, detail=True)
            root = ""
        elif fs.isfile(path):
            return [_file_info(fs, fs.info(path))]
        else:
            entries = fs.find(path, detail=True)
            root = path
    found = []
    for name, info in entries.items():
        inner = name[len(root) :].strip("/").split("/")
        hidden = any(part.startswith((".", "_")) for part in inner) if root else inner[-1].startswith((".", "_"))
        if info["type"] == "file" and name.endswith(suffix) and not hidden:
            found.append(_file_info(fs, info))
    return sorted(found, key=lambda file: file.url)


def _file_info(fs: fsspec.AbstractFileSystem, info: dict[str, Any]) -> FileInfo:
    version = next(
        (str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(key)), ""
    )
    name = info["name"]
    url = name if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(name)
    return FileInfo(url=url, size_bytes=int(info["size"] or 0), version=version)


def check_writable(url: str) -> None:
    """Writes and removes a small file in a folder, before hours of work depend on it. Raises UserError."""
    probe = join(url, f".write-test-{uuid.uuid4().hex[:8]}")
    try:
        write_bytes(probe, b"fovea")
        remove(probe)
    except UserError as error:
        raise UserError(f"cannot write to {url}: {str(error).rsplit(': ', 1)[-1]}") from error
