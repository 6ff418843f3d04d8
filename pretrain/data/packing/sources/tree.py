"""All that lies below a source: every file once, with hidden ones, links and empty folders,
listed before anything is read.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cluster import storage
from cluster.errors import UserError
from cluster.storage import FileInfo
from pretrain.data.images.image_headers import image_format
from pretrain.data.packing.sources.parallel import REMOTE_THREADS, in_order
from pretrain.data.reading.manifest import IMAGE_SUFFIXES

# endings of images that cannot be decoded; these are counted by name
OTHER_IMAGES = (
    *(
        ".jxl",
        ".svg",
        ".psd",
        ".raw",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".dng",
        ".orf",
        ".rw2",
        ".raf",
        ".exr",
        ".hdr",
    ),
    *(".eps", ".ai", ".ico", ".tga", ".pcx", ".dcm", ".nii"),
)
HIDDEN = "hidden"  # begins what is said of such files
HEAD_BYTES = 64  # tell an image's format
USUAL_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,9}$")  # of `9f86d0.81884c7d65` the last part is none


@dataclass
class Tree:
    """The files below a folder, or one file alone.

    Attributes:
        root: the folder; of a file, the folder that holds it.
        files: path below the root -> file; hidden ones and those that lead nowhere are in `left`.
        left: path -> why it is not looked at at all: hidden, a link to a folder, a dead link.
        empty_folders: paths of folders without any file in or below them.
        images: those of `files` that are images, by their endings or, where they have none,
            by their first bytes.
    """

    root: str
    files: dict[str, FileInfo] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    empty_folders: list[str] = field(default_factory=list)
    images: dict[str, FileInfo] = field(default_factory=dict)

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Paths that end so, whatever the case, sorted."""
        return sorted(path for path in self.files if path.lower().endswith(suffixes))

    def below(self, folder: str) -> Tree:
        """The part of the tree below one of its folders."""
        if not folder:
            return self
        start = f"{folder}/"
        parts: list[dict[str, Any]] = [
            {path.removeprefix(start): value for path, value in mapping.items() if path.startswith(start)}
            for mapping in (self.files, self.left, self.images)
        ]
        empty = [path.removeprefix(start) for path in self.empty_folders if path.startswith(start)]
        return Tree(storage.join(self.root, folder), parts[0], parts[1], empty, parts[2])

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """Images by the last part of their path, in lower case."""
        found: dict[str, list[str]] = {}
        for path in self.images:
            found.setdefault(posixpath.basename(path).lower(), []).append(path)
        return found

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Images by the last part of their path without its ending."""
        found: dict[str, list[str]] = {}
        for path in self.images:
            found.setdefault(stem_of(path), []).append(path)
        return found

    @cached_property
    def lower(self) -> dict[str, str]:
        """Paths of files in lower case -> as they are."""
        return {path.lower(): path for path in self.files}


def stem_of(path: str) -> str:
    """The last part of a path without its ending."""
    return posixpath.splitext(posixpath.basename(path))[0]


def read_tree(src: str, *, leave_out: str | None = None) -> Tree:
    """Lists a folder with all below it; of a file, a glob or a web address the files that it names.

    Args:
        src: local or in any store.
        leave_out: a folder to pass over (where the shards go).

    Raises UserError when nothing is there.
    """
    fs, root = storage.filesystem(src)
    if storage.is_glob(src) or src.startswith(("http://", "https://")):
        files = storage.find_files(src, "")
        return _told(Tree(src, {file.url: file for file in files}))
    if not storage.exists(src):
        raise UserError(f"{src} does not exist; give a folder of images, or an annotation file")
    with storage.explained("list", src):
        if not fs.isdir(root):
            folder, _, name = (
                src.replace("\\", "/").rpartition("/") if storage.is_local(src) else src.rpartition("/")
            )
            (file,) = storage.find_files(src, "") or (None,)
            return Tree(folder or ".", {name: file} if file else {})
        local = isinstance(fs, LocalFileSystem)
        tree = _local(root, _inside(root, leave_out)) if local else _of_store(fs, root, src, leave_out)
    return _told(tree)


def _inside(root: str, leave_out: str | None) -> str:
    """Where in the source the shards go, as a path below it; empty where they do not."""
    if not leave_out or not storage.is_local(leave_out):
        return ""
    inside = os.path.relpath(os.path.abspath(storage.local_path(leave_out)), os.path.abspath(root))
    return "" if inside.startswith("..") or inside == "." else inside


def _local(root: str, leave_out: str) -> Tree:
    """By `os.scandir`, which tells of 100,000 files in a second what fsspec needs several for."""
    tree = Tree(root)
    prefix = root.rstrip("/")
    todo = [""]
    num_in: dict[str, int] = {}
    folders: list[str] = []
    while todo:
        folder = todo.pop()
        try:
            entries = os.scandir(f"{prefix}/{folder}" if folder else root)
        except PermissionError:
            tree.left[folder] = "a folder without read permission"
            continue
        folders.append(folder)
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if path == leave_out:
                continue
            hidden = entry.name.startswith(".")
            if entry.is_dir(follow_symlinks=False):
                if hidden or entry.name.startswith("_") or entry.name in SYSTEM_FOLDERS:
                    for below in _files_below(entry.path):
                        tree.left[f"{path}/{below}"] = _why_hidden(f"{path}/{below}")
                        num_in[folder] = num_in.get(folder, 0) + 1
                else:
                    todo.append(path)
                continue
            num_in[folder] = num_in.get(folder, 0) + 1
            if hidden or entry.name in SYSTEM_FILES:
                tree.left[path] = _why_hidden(path)
            elif entry.is_file():
                status = entry.stat()  # of what a link leads to, which is what is read
                # images may be millions, so it is not checked whether they
                # changed while they were read in parts
                version = "" if entry.name.lower().endswith(IMAGE_SUFFIXES) else str(status.st_mtime)
                tree.files[path] = FileInfo(f"{prefix}/{path}", status.st_size, version)
            elif entry.is_dir():
                tree.left[path] = "a link to a folder; it is not followed"
            else:
                tree.left[path] = "a broken link" if entry.is_symlink() else "a device, not a file"
    tree.empty_folders = sorted(_empty(folders, num_in))
    return tree


SYSTEM_FILES = ("Thumbs.db", "desktop.ini", "Desktop.ini")
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")


def _why_hidden(path: str) -> str:
    *folders, name = path.split("/")
    of_system = (
        name.startswith("._") or name in SYSTEM_FILES or any(folder in SYSTEM_FOLDERS for folder in folders)
    )
    if name.lower().endswith(IMAGE_SUFFIXES) and not of_system:
        return "image that is hidden, or in a folder whose name begins with . or _"
    return f"{HIDDEN}, or of the operating system"


def _files_below(folder: str) -> Iterator[str]:
    for here, _, names in os.walk(folder):
        for name in names:
            yield os.path.relpath(os.path.join(here, name), folder)


def _empty(folders: Iterable[str], num_in: dict[str, int]) -> Iterator[str]:
    """Folders without any file in or below them, of which those that hold another such are left out."""
    held = set()
    for folder in num_in:
        while folder:
            held.add(folder)
            folder = posixpath.dirname(folder)
    empty = {folder for folder in folders if folder and folder not in held}
    return (folder for folder in empty if posixpath.dirname(folder) not in empty)


def _of_store(fs: fsspec.AbstractFileSystem, root: str, src: str, leave_out: str | None) -> Tree:
    fs.invalidate_cache()
    tree = Tree(src.rstrip("/"))
    out = (
        f"{storage.filesystem(leave_out)[1].rstrip('/')}/"
        if leave_out and not storage.is_local(leave_out)
        else ""
    )
    for name, info in fs.find(root, detail=True).items():
        path = name[len(root.rstrip("/")) + 1 :]
        if not path or (out and name.startswith(out)) or info.get("type") != "file":
            continue
        parts = path.split("/")
        if any(part.startswith((".", "_")) for part in parts[:-1]) or parts[-1].startswith("."):
            tree.left[path] = _why_hidden(path)
        else:
            version = next(
                (str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified") if info.get(key)), ""
            )
            tree.files[path] = FileInfo(fs.unstrip_protocol(name), int(info.get("size") or 0), version)
    return tree


def _told(tree: Tree) -> Tree:
    """The tree, sorted, with its images told: by their endings,
    and those without an ending by their first bytes.
    """
    tree.files = {path: tree.files[path] for path in sorted(tree.files)}
    tree.images = {path: file for path, file in tree.files.items() if path.lower().endswith(IMAGE_SUFFIXES)}
    unknown = [path for path in tree.files if not USUAL_ENDING.search(path) and path not in tree.images]
    if unknown:
        local = storage.is_local(tree.root)
        heads = in_order(lambda path: head_of(tree.files[path]), unknown, 4 if local else REMOTE_THREADS)
        for path, head in zip(unknown, heads, strict=True):
            if image_format(head) is not None:
                tree.images[path] = tree.files[path]
        tree.images = {path: tree.images[path] for path in tree.files if path in tree.images}
    return tree


def read_parts(root: str, folders: Iterable[str], *, leave_out: str | None = None) -> Tree:
    """The part of a tree below some of its folders, which may be a small one of much else."""
    tree = Tree(root)
    for folder in sorted(folders):
        part = read_tree(storage.join(root, folder), leave_out=leave_out)
        tree.files.update({f"{folder}/{path}": file for path, file in part.files.items()})
        tree.left.update({f"{folder}/{path}": why for path, why in part.left.items()})
        tree.images.update({f"{folder}/{path}": file for path, file in part.images.items()})
        tree.empty_folders += [f"{folder}/{path}" for path in part.empty_folders]
    return tree


def head_of(file: FileInfo, num_bytes: int = HEAD_BYTES) -> bytes:
    """The first bytes of a file; none where it cannot be read."""
    try:
        if storage.is_local(file.url):
            with open(storage.local_path(file.url), "rb") as opened:
                return opened.read(num_bytes)
        return bytes(storage.read_range(file, 0, min(num_bytes, file.size_bytes)))
    except (OSError, UserError):
        return b""
