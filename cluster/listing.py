"""The files that a URL names: one, a glob, or all under a folder."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from cluster.store_calls import FileInfo, file_info, info_of, is_http, tried


def find_files(url: str, suffix: str) -> list[FileInfo]:
    """The files that a URL names, sorted by URL: one file, a glob, or all under a folder that end in `suffix`.

    Hidden files and those in hidden or underscore folders (`_temporary`) are left out, as Spark and Hugging Face do.
    Returns an empty list when nothing is there.
    """
    return tried("list", url, lambda fs, path: _find_files(fs, path, suffix))


def _find_files(fs: fsspec.AbstractFileSystem, path: str, suffix: str) -> list[FileInfo]:
    fs.invalidate_cache()
    of_web = is_http(fs)  # whose "?" begins a query, in which all signs are letters
    if any(sign in path.partition("?")[0] for sign in "*[") if of_web else any(sign in path for sign in "*?["):
        root, entries = "", _glob(fs, path)
    else:
        info = info_of(fs, path)
        if info is None:
            return []
        # a web server does not tell files from folders
        if _is_file(info) and not (of_web and suffix and path.endswith("/")):
            return [file_info(fs, info)]
        root, entries = path, _walk(fs, path, None) if of_web else fs.find(path, detail=True)
    found = []
    for name, info in entries.items():
        inner = name[len(root) :].strip("/").split("/")
        hidden = any(part.startswith((".", "_")) for part in inner) if root else inner[-1].startswith((".", "_"))
        if _is_file(info) and name.endswith(suffix) and not hidden:
            found.append(file_info(fs, fs.info(name) if info.get("size") is None else info))
    return sorted(found, key=lambda file: file.url)


def _is_file(info: dict[str, Any]) -> bool:
    # a link to a file, as the cache of Hugging Face is full of, is neither file nor folder to fsspec
    return bool(info["type"] == "file" or (info.get("islink") and os.path.isfile(info["name"])))


def _glob(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any]:
    # fs.glob leaves out what it cannot list, so that a busy store would seem to hold fewer files
    if isinstance(fs, LocalFileSystem):
        return dict(fs.glob(path, detail=True))
    before_magic = re.split(r"[*\[]" if is_http(fs) else r"[*?\[]", path)[0]
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
