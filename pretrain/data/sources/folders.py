"""Folders of images, with or without a folder for each class."""

from __future__ import annotations

from cluster import storage
from cluster.errors import UserError, choose
from pretrain.data.manifest import IMAGE_SUFFIXES
from pretrain.data.sources.records import Listing, Record

LABELS = ("auto", "folders", "none")


def folder_records(src: str, *, labels: str = "auto", leave_out: str | None = None) -> Listing:
    """The images in a folder and below it, sorted by path; hidden and underscore folders are left out.

    Args:
        src: folder, local or in any store.
        labels: `folders` takes the folder that directly holds an image as its class, `none` takes no classes, `auto` takes
            them when all images lie exactly one folder deep, in two folders or more.
        leave_out: a folder below `src` to pass over (where the shards go).

    Raises:
        UserError: when `src` is no folder or holds no image, or an image lies outside all class folders.
    """
    choose("value of --labels", labels, LABELS)
    fs, root = storage.filesystem(src)
    if any(sign in root for sign in "*?["):
        raise UserError(f"{src} is a glob; give the folder that holds the images")
    if not storage.exists(src):
        raise UserError(f"{src} does not exist; give the folder that holds the images")
    if not fs.isdir(root):
        raise UserError(f"{src} is a file; give the folder that holds the images")
    prefix = (root if storage.is_local(src) else fs.unstrip_protocol(root)).rstrip("/") + "/"
    passed_over = f"{storage.absolute(leave_out)}/" if leave_out else ""
    if passed_over == prefix or not passed_over.startswith(prefix):
        passed_over = ""
    files = [
        file
        for file in storage.find_files(src, "")
        if file.url.lower().endswith(IMAGE_SUFFIXES) and not (passed_over and file.url.startswith(passed_over))
    ]
    if not files:
        raise UserError(f"no images in {src} or its sub-folders (looked for {', '.join(IMAGE_SUFFIXES)})")
    paths = [file.url.removeprefix(prefix) for file in files]
    with_classes = labels == "folders" or (labels == "auto" and _are_class_folders(paths))
    outside = [path for path in paths if "/" not in path]
    if with_classes and outside:
        raise UserError(
            f"{len(outside)} images lie directly in {src} (first: {outside[0]}); with --labels folders each image must "
            "lie in the folder of its class"
        )
    records = [
        Record(file.url, path, file.size_bytes, label=path.split("/")[-2] if with_classes else None)
        for file, path in zip(files, paths, strict=True)
    ]
    listing = Listing(sorted(records, key=lambda record: record.path))
    if labels == "auto" and not with_classes and any("/" in path for path in paths):
        listing.notes.append(
            "no labels: the images do not lie exactly one folder deep; --labels folders takes their folders as classes"
        )
    return listing


def _are_class_folders(paths: list[str]) -> bool:
    return all(path.count("/") == 1 for path in paths) and len({path.split("/")[0] for path in paths}) >= 2
