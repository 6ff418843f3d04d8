"""Folders of images, with or without a folder for each class."""

from __future__ import annotations

import posixpath
from collections import Counter

from cluster import storage
from cluster.errors import UserError, choose
from pretrain.data.packing.sources.image_record import Record
from pretrain.data.packing.sources.record_list import Records
from pretrain.data.packing.sources.records import Listing
from pretrain.data.packing.sources.splits import layout_of
from pretrain.data.packing.sources.texts import clean, shown
from pretrain.data.packing.sources.tree import OTHER_IMAGES, Tree, read_tree
from pretrain.data.reading.manifest import IMAGE_SUFFIXES

LABELS = ("auto", "folders", "none")
MAX_STRAYS = 0.25  # of the images; so many outside of class folders, and the folders are none


def folder_records(
    src: str, *, tree: Tree | None = None, labels: str = "auto", leave_out: str | None = None
) -> Listing:
    """The images in a folder and below it, sorted by path; hidden and underscore folders are left out.

    Args:
        src: folder, local or in any store.
        tree: of `src`, where it is known already.
        labels: `folders` takes the folder that directly holds an image as its class, `none` takes no
            classes, `auto` takes them when all images lie exactly one folder deep, in two folders or more,
            not counting folders of splits; a few images beside class folders are left out.
        leave_out: a folder below `src` to pass over (where the shards go).

    Raises:
        UserError: when `src` is no folder or holds no image, or an image lies outside all class folders.
    """
    choose("value of --labels", labels, LABELS)
    if tree is None:
        check_folder(src)
        tree = read_tree(src, leave_out=leave_out)
    if not tree.images:
        raise UserError(why_no_images(src, tree))
    listing = Listing(Records(tree.files), told="folder of images", tree=tree)
    account = listing.account
    layout = layout_of(tree.images)
    start = 0 if layout.level is None else layout.level + 1
    folders: Counter[str] = Counter()  # below those of the splits -> images
    first_outside = ""
    for path in tree.images:
        folder = "/".join(path.split("/")[start:-1])
        folders[folder] += 1
        if layout.level is not None and layout.split_of(path) is None and path.count("/") < start:
            account.left[path] = "image outside the folders of the splits"
        elif not folder:
            first_outside = first_outside or path
    num_outside = folders[""] - len(account.left)
    with_classes = labels == "folders" or (labels == "auto" and _are_classes(folders, num_outside))
    if with_classes and num_outside and labels == "folders":
        raise UserError(
            f"{num_outside} images lie directly in {src} (first: {first_outside}); with --labels folders "
            "each image must lie in the folder of its class"
        )
    if with_classes and num_outside:
        listing.notes.append(
            f"{num_outside} images lie outside the class folders and are left out (first: {first_outside}); "
            "--labels none packs "
            "all without classes"
        )
    counts: Counter[str] = Counter()
    spellings: dict[str, set[str]] = {}
    for path, file in tree.images.pairs():
        if path in account.left:
            continue
        label = None
        if with_classes:
            if path.count("/") <= start:
                account.left[path] = "image outside the class folders"
                continue
            folder = posixpath.basename(posixpath.dirname(path))
            label = clean(folder) or folder
            counts[label] += 1
            spellings.setdefault(label, set()).add(folder)
        listing.records.append(
            Record(file.url, path, file.size_bytes, label=label, split=layout.split_of(path))
        )
    listing.notes += _notes_of_classes(counts, spellings)
    if with_classes and tree.empty_folders:
        listing.notes.append(f"empty folders give no class: {shown(tree.empty_folders)}")
    if labels == "auto" and not with_classes and any(folders):
        if len(folders) == 1:
            why = f"all images lie in one folder ({next(iter(folders))}), which is not a classification"
        else:
            why = "the images do not lie exactly one folder deep"
        listing.notes.append(f"no labels: {why}; --labels folders takes their folders as classes")
    return listing


def _are_classes(folders: Counter[str], num_outside: int) -> bool:
    """Whether folders, with the number of their images, look like classes: two or more, with nearly all
    images exactly one deep.
    """
    named = [folder for folder in folders if folder]
    num_images = folders.total() - folders[""] + num_outside
    is_flat = not any("/" in folder for folder in named)
    return num_outside < MAX_STRAYS * num_images and len(named) >= 2 and is_flat


def _notes_of_classes(counts: Counter[str], spellings: dict[str, set[str]]) -> list[str]:
    """What is to be said of classes whose names are nearly the same."""
    notes = []
    for label, folders_of in sorted(spellings.items()):
        if len(folders_of) > 1:
            notes.append(
                f"{len(folders_of)} folders that differ only in blanks or Unicode are one class, {label!r}"
            )
    for first in sorted(counts):
        alike = sorted(name for name in counts if name.casefold() == first.casefold())
        if len(alike) > 1 and alike[0] == first:
            notes.append(f"classes that differ only in case are kept apart: {', '.join(map(repr, alike))}")
    return notes


def check_folder(src: str) -> None:
    """Raises UserError when a source is no folder."""
    fs, root = storage.filesystem(src)
    if storage.is_glob(src):
        raise UserError(f"{src} is a glob; give the folder that holds the images")
    if not storage.exists(src):
        raise UserError(f"{src} does not exist; give the folder that holds the images")
    if not fs.isdir(root):
        raise UserError(f"{src} is a file; give the folder that holds the images")


def why_no_images(src: str, tree: Tree) -> str:
    """What lies in a folder in place of images, and what to do about it."""
    endings = Counter(posixpath.splitext(path)[1].lower() for path in tree.files)
    parquet = endings[".parquet"] + endings[".pq"]
    if parquet:
        return (
            f"{src} holds {parquet} Parquet files and no images; they are a data set already: read it in "
            f"place (data.url={src}), "
            f"or write it with small row groups: python -m pretrain.data check {src} --fix DEST"
        )
    known = [f"{num} {ending}" for ending, num in endings.most_common() if ending in OTHER_IMAGES]
    looked = f"no images in {src} or its sub-folders (looked for {', '.join(IMAGE_SUFFIXES[:12])}, ...)"
    if known:
        return (
            f"{looked}; it holds {', '.join(known)}, which cannot be decoded: save them as JPEG, PNG or WebP"
        )
    held = ", ".join(f"{num} {ending or 'without an ending'}" for ending, num in endings.most_common(5))
    return f"{looked}; it holds {held}" if held else looked
