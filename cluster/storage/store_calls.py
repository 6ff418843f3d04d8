"""Calls of a store: tried again where failures pass, with errors that name the URL;
and what a store knows about a file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cluster.errors import StoreUnavailable, UserError
from cluster.secrets import masked
from cluster.storage.retrying import (
    DEFAULT_PATIENCE,
    Patience,
    http_status,
    in_words,
    is_transient,
    retrying,
)
from cluster.storage.stores import filesystem

Result = TypeVar("Result")

# libraries under fsspec whose exceptions are no OSError:
# missing credentials, unreachable endpoints, refused requests
STORE_LIBRARIES = ("aiohttp", "azure", "botocore", "gcsfs", "google", "httpx", "httpx2", "huggingface_hub")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a listing. `version` changes when the content does (ETag where
    the store has one, else the time).
    """

    url: str
    size_bytes: int
    version: str


@contextmanager
def explained(action: str, url: str) -> Iterator[None]:
    """Turns the store's errors into a UserError that says what was tried on which URL, without secrets."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        shown = masked(url)
        status = http_status(error)
        if status in (401, 403) or isinstance(error, PermissionError):
            answer = f" (HTTP {status}: {masked(in_words(error))})" if status else ""
            raise UserError(f"cannot {action} {shown}: permission denied{answer}") from error
        if isinstance(error, FileNotFoundError) and status in (None, 404):
            raise UserError(f"cannot {action} {shown}: it does not exist") from error
        if (
            not isinstance(error, OSError)
            and type(error).__module__.partition(".")[0] not in STORE_LIBRARIES
        ):
            raise
        kind = StoreUnavailable if is_transient(error) else UserError
        raise kind(f"cannot {action} {shown}: {masked(in_words(error))}") from error


def tried(
    action: str,
    url: str,
    function: Callable[[fsspec.AbstractFileSystem, str], Result],
    patience: Patience = DEFAULT_PATIENCE,
    stopped: Callable[[], bool] = lambda: False,
    *,
    guarded: bool = False,
) -> Result:
    """Calls `function(file system, path)`, again after failures that pass;
    errors that stay are explained.
    """
    fs, path = filesystem(url, patient=False, guarded=guarded)
    with explained(action, url):
        return retrying(lambda: function(fs, path), url=url, patience=patience, stopped=stopped)


def info_of(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """What a store knows about a file or folder; None where there is none."""
    # fs.exists and fs.isfile would say "no" when the store is only busy
    try:
        return dict(fs.info(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        # fsspec's http says "not found" for every answer that is no success, and where nobody answers
        cause = error.__cause__
        if isinstance(cause, Exception) and http_status(error) is None and is_transient(cause):
            raise cause from None
        if http_status(error) in (None, 404):
            return None
        raise
    except (ValueError, OSError) as error:  # as os.path.exists: no file of this machine has such a name
        is_no_name = isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG
        if "file" in fs.protocol and is_no_name:
            return None
        raise


def is_http(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether it is a web server."""
    return "https" in fs.protocol  # its class could not be imported where aiohttp is missing


def file_info(fs: fsspec.AbstractFileSystem, info: dict[str, Any]) -> FileInfo:
    """One entry of a listing."""
    if info.get("islink"):  # size and time of what it leads to, which is what is read
        behind = os.stat(info["name"])
        info = {**info, "size": behind.st_size, "mtime": behind.st_mtime}
    versions = (
        "ETag",
        "etag",
        "mtime",
        "LastModified",
        "Last-Modified",
        "blob_id",
        "last_modified",
        "created",
    )
    version = next((str(info[key]) for key in versions if info.get(key)), "")
    name = info["name"]
    url = name if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(name)
    return FileInfo(url=url, size_bytes=int(info["size"] or 0), version=version)
