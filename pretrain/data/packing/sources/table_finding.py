"""Which files of a source are tables that name its images, and which files a table speaks of."""

from __future__ import annotations

import posixpath

from cluster import storage
from cluster.errors import UserError
from pretrain.data.packing.sources.evidence import Evidence
from pretrain.data.packing.sources.file_table import FileTable
from pretrain.data.packing.sources.finding import Finder
from pretrain.data.packing.sources.rows import SUFFIXES, Rows, path_in
from pretrain.data.packing.sources.splits import layout_of, split_in_name
from pretrain.data.packing.sources.table_roles import METADATA, PATHS, usual
from pretrain.data.packing.sources.texts import is_nothing, shown
from pretrain.data.packing.sources.tree import Tree, read_parts, read_tree


def tables_in(src: str, tree: Tree) -> list[str]:
    """The tables of a folder that name its images: one, one for each split, or one in each of its folders.

    Raises UserError where there is none, or where several name the same images.
    """
    evidence = Evidence(tree)
    candidates = [path for path in evidence.tables if posixpath.basename(path).lower() in METADATA]
    if not candidates:
        candidates = [
            path for path in (*evidence.tables, *evidence.json_files("list")) if names_images(tree, path)
        ]
    if not candidates:
        raise UserError(
            f"{src} is no {', '.join(SUFFIXES)} file, nor a folder with a {' or '.join(METADATA[:2])}"
        )
    if len(candidates) > 1:
        splits = [split_in_name(path) or layout_of(tree.images).split_of(path) for path in candidates]
        folders = [posixpath.dirname(path) for path in candidates]
        if len({*splits}) < len(splits) and len({*folders}) < len(folders):
            raise UserError(
                f"{src} holds several tables of images: {shown(candidates)}; give the one you mean"
            )
    return candidates


def names_images(tree: Tree, path: str) -> bool:
    """Whether a file of a tree is a table whose rows name images of the tree."""
    try:
        rows = Rows(tree.files[path].url)
        column = usual(PATHS, rows.columns)
        if column is None:
            return False
        finder = Finder(tree, bases=tuple(dict.fromkeys((posixpath.dirname(path), ""))))
        num = num_found = 0
        for _, row in rows.good():
            if is_nothing(row.get(column)):
                continue
            num += 1
            try:
                location = finder.find(path_in(row[column]), column)
            except ValueError:
                continue
            num_found += location.path is not None or "://" in location.url
            if num >= 20:
                break
        return num_found * 2 >= num > 0
    except UserError:
        return False


def tree_of_table(rows: Rows, column: str, folder: str, name: str, leave_out: str | None) -> Tree:
    """The files in the folders that a table names images in; of a table of links, the table alone."""
    first_folders: set[str] = set()
    for _, row in rows.good():
        value = path_in(row.get(column))
        path = str(value).strip().replace("\\", "/") if isinstance(value, int | str) else ""
        if path and "://" not in path and ".." not in path.split("/") and not posixpath.isabs(path):
            path = posixpath.normpath(path)
            first_folders.add(path.partition("/")[0] if "/" in path else "")
        if "" in first_folders:
            break
    table = name, storage.find_files(storage.join(folder, name), "")[0]
    if not first_folders:
        return Tree(folder, FileTable("", [table]))
    if "" in first_folders or not all(
        storage.exists(storage.join(folder, first)) for first in first_folders
    ):
        return read_tree(folder, leave_out=leave_out)
    # a table may lie in a folder with much else
    return read_parts(folder, first_folders, leave_out=leave_out, also=[table])
