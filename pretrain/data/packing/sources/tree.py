"""All that lies below a source: every file once, with hidden ones, links and empty folders,
listed before anything is read.
"""

from __future__ import annotations

import os
import posixpath
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from cluster import storage
from cluster.errors import UserError
from cluster.storage import FileInfo
from pretrain.data.images.image_headers import image_format
from pretrain.data.packing.sources.file_table import Chosen, FileTable, Lookup
from pretrain.data.packing.sources.parallel import REMOTE_THREADS, in_order
from pretrain.data.reading.manifest import IMAGE_SUFFIXES

# endings of images that cannot be decoded; these are counted by name
OTHER_IMAGES = (
    ".jxl", ".svg", ".psd", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".exr",
    ".hdr", ".eps", ".ai", ".ico", ".tga", ".pcx", ".dcm", ".nii",
)  # fmt: skip
HIDDEN = "hidden"  # begins what is said of such files
HEAD_BYTES = 64  # tell an image's format
WHOLE_BYTES = 2**20  # files of at most so many are read in one piece, or their heads alone
USUAL_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,9}$")  # of `9f86d0.81884c7d65` the last part is none


@dataclass
class Tree:
    """The files below a folder, or one file alone.

    Attributes:
        root: the folder; of a file, the folder that holds it.
        files: path below the root -> file; hidden ones and those that lead nowhere are in `left`.
        left: path -> why it is not looked at at all: hidden, a link to a folder, a dead link.
        empty_folders: paths of folders without any file in or below them.
        is_image: of each of `files`, by number: 1 for images, by their endings or, where they have none,
            by their first bytes; 0 for others.
    """

    root: str
    files: FileTable = field(default_factory=FileTable)
    left: dict[str, str] = field(default_factory=dict)
    empty_folders: list[str] = field(default_factory=list)
    is_image: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.is_image = self.is_image or bytearray(len(self.files))

    @property
    def images(self) -> Chosen:
        """Those of `files` that are images."""
        return Chosen(self.files, self.is_image)

    def others(self) -> Iterator[str]:
        """Paths of those that are none, sorted."""
        return map(self.files.path, np.flatnonzero(np.frombuffer(self.is_image, np.uint8) == 0).tolist())

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Paths of files other than images that end so, whatever the case, sorted."""
        return [path for path in self.others() if path.lower().endswith(suffixes)]

    @cached_property
    def by_name(self) -> Lookup:
        """Images by the last part of their path, in lower case."""
        return Lookup(self.files, self.is_image, lambda path: posixpath.basename(path).lower())

    @cached_property
    def by_stem(self) -> Lookup:
        """Images by the last part of their path without its ending."""
        return Lookup(self.files, self.is_image, stem_of)

    @cached_property
    def lower(self) -> Lookup:
        """Files by their paths in lower case."""
        return Lookup(self.files, bytearray(b"\1") * len(self.files), str.lower)


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
    tree, is_one_file = _listed(src, leave_out)
    return tree if is_one_file else _told(tree)


def _listed(src: str, leave_out: str | None) -> tuple[Tree, bool]:
    """A tree whose images are not told yet, and whether it is one file that was named."""
    fs, root = storage.filesystem(src)
    if storage.is_glob(src) or src.startswith(("http://", "https://")):
        return Tree(src, FileTable("", ((file.url, file) for file in storage.find_files(src, "")))), False
    if not storage.exists(src):
        raise UserError(f"{src} does not exist; give a folder of images, or an annotation file")
    with storage.explained("list", src):
        if not fs.isdir(root):
            folder, _, name = (
                src.replace("\\", "/").rpartition("/") if storage.is_local(src) else src.rpartition("/")
            )
            (file,) = storage.find_files(src, "") or (None,)
            return Tree(folder or ".", FileTable("", [(name, file)] if file else [])), True
        local = isinstance(fs, LocalFileSystem)
        tree = _local(root, _inside(root, leave_out)) if local else _of_store(fs, root, src, leave_out)
    return tree, False


def _inside(root: str, leave_out: str | None) -> str:
    """Where in the source the shards go, as a path below it; empty where they do not."""
    if not leave_out or not storage.is_local(leave_out):
        return ""
    inside = os.path.relpath(os.path.abspath(storage.local_path(leave_out)), os.path.abspath(root))
    return "" if inside.startswith("..") or inside == "." else inside


def _local(root: str, leave_out: str) -> Tree:
    """By `os.scandir`, which tells of 100,000 files in a second what fsspec needs several for."""
    prefix = root.rstrip("/")
    tree = Tree(root, FileTable(f"{prefix}/"))
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
                version = str(status.st_mtime) if _has_version(entry.name, status.st_size) else ""
                tree.files.add(path, f"{prefix}/{path}", status.st_size, version)
            elif entry.is_dir():
                tree.left[path] = "a link to a folder; it is not followed"
            else:
                tree.left[path] = "a broken link" if entry.is_symlink() else "a device, not a file"
    tree.empty_folders = sorted(_empty(folders, num_in))
    return tree


def _has_version(name: str, size_bytes: int) -> bool:
    """Whether it is checked that a file does not change while it is read in parts: not for images, which may
    be millions, nor for what is read in one piece.
    """
    return size_bytes > WHOLE_BYTES and not name.lower().endswith(IMAGE_SUFFIXES)


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
    tree = Tree(src.rstrip("/"), FileTable(f"{fs.unstrip_protocol(root.rstrip('/'))}/"))
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
            size_bytes, version = int(info.get("size") or 0), ""
            if _has_version(path, size_bytes):
                keys = ("ETag", "etag", "mtime", "LastModified")
                version = next((str(info[key]) for key in keys if info.get(key)), "")
            tree.files.add(path, fs.unstrip_protocol(name), size_bytes, version)
    return tree


def _told(tree: Tree) -> Tree:
    """The tree with its images told: by their endings,
    and those without an ending by their first bytes.
    """
    tree.is_image, unknown = bytearray(), array("q")
    for number, path in enumerate(tree.files):
        tree.is_image.append(path.lower().endswith(IMAGE_SUFFIXES))
        if not tree.is_image[-1] and not USUAL_ENDING.search(path):
            unknown.append(number)
    if unknown:
        files = (tree.files[tree.files.path(number)] for number in unknown)
        heads = in_order(head_of, files, 4 if storage.is_local(tree.root) else REMOTE_THREADS)
        for number, head in zip(unknown, heads, strict=True):
            tree.is_image[number] = image_format(head) is not None
    return tree


def read_parts(
    root: str,
    folders: Iterable[str],
    *,
    leave_out: str | None = None,
    also: Iterable[tuple[str, FileInfo]] = (),
) -> Tree:
    """The part of a tree below some of its folders, which may be a small one of much else.
    `also`: (path, file) of further files of it.
    """
    parts = [(folder, _listed(storage.join(root, folder), leave_out)[0]) for folder in sorted(folders)]
    tree = Tree(root, FileTable(next((_prefix_above(part, folder) for folder, part in parts), "")))
    for folder, part in parts:
        for path, file in part.files.pairs():
            tree.files.add(f"{folder}/{path}", file.url, file.size_bytes, file.version)
        tree.left.update({f"{folder}/{path}": why for path, why in part.left.items()})
        tree.empty_folders += [f"{folder}/{path}" for path in part.empty_folders]
    for path, file in also:
        tree.files.add(path, file.url, file.size_bytes, file.version)
    return _told(tree)


def _prefix_above(part: Tree, folder: str) -> str:
    """What stands before the paths of a whole tree in the URLs of its part below a folder."""
    return part.files.prefix.removesuffix(f"{folder}/")


def head_of(file: FileInfo, num_bytes: int = HEAD_BYTES) -> bytes:
    """The first bytes of a file; none where it cannot be read."""
    try:
        if storage.is_local(file.url):
            with open(storage.local_path(file.url), "rb") as opened:
                return opened.read(num_bytes)
        return bytes(storage.read_range(file, 0, min(num_bytes, file.size_bytes)))
    except (OSError, UserError):
        return b""
