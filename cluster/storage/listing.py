"""The files that a URL names: one, a glob, or all under a folder."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from cluster.storage.store_calls import FileInfo, file_info, info_of, is_http, tried

GLOB_SIGNS = "*?["
OTHER_ENDINGS = {".parquet": (".parquet", ".pq")}  # endings that people give the same kind of file


def is_glob(url: str) -> bool:
    """Whether a URL is a pattern. What exists is a name, whatever its characters: `run [v2]/shards`."""
    if not any(sign in url for sign in GLOB_SIGNS):
        return False
    return bool(tried("look up", url, _is_pattern))


def _is_pattern(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    # "?" begins the query of a web address, in which all signs are letters
    name, signs = (path.partition("?")[0], "*[") if is_http(fs) else (path, GLOB_SIGNS)
    if not any(sign in name for sign in signs):
        return False
    return is_http(fs) or info_of(fs, path) is None


def find_files(url: str, suffix: str) -> list[FileInfo]:
    """The files that a URL names, sorted by URL:
    one file, a glob, or all under a folder that end in `suffix`.

    The case of an ending does not matter, and `.pq` is `.parquet`. Hidden files and those in hidden or
    underscore folders (`_temporary`) are left out, as Spark and Hugging Face do; so are files that begin
    with an underscore, where an ending is asked for: among all files they may be photos, which cameras call
    _DSC0001.JPG. Returns an empty list when nothing is there.
    """
    return tried("list", url, lambda fs, path: _find_files(fs, path, suffix))


def passed_over(url: str, suffix: str) -> list[str]:
    """The files under a folder that `find_files` leaves out although they have the ending:
    hidden, or in such a folder.
    """

    def listed(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
        info = info_of(fs, path)
        if info is None or _is_file(info) or is_http(fs):
            return []
        names = {name for name in fs.find(path) if _ends(name, suffix)}
        taken = {file.url for file in _find_files(fs, path, suffix)}
        return sorted(name for name in names if name not in taken and fs.unstrip_protocol(name) not in taken)

    return tried("list", url, listed)


def _ends(name: str, suffix: str) -> bool:
    return name.lower().endswith(OTHER_ENDINGS.get(suffix, (suffix,)))


def _find_files(fs: fsspec.AbstractFileSystem, path: str, suffix: str) -> list[FileInfo]:
    fs.invalidate_cache()
    of_web = is_http(fs)  # whose "?" begins a query
    if _is_pattern(fs, path):
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
        hidden = any(part.startswith((".", "_")) for part in inner[: -1 if root else 0])
        hidden = hidden or inner[-1].startswith((".", "_") if suffix else ".")
        if _is_file(info) and _ends(name, suffix) and not hidden:
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
