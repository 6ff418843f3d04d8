"""Where images to pack come from. Each kind of source is a function that lists records; nothing is read yet.

A new kind is a module here, a line in `KINDS` and, if it can be told from the look of a source, one in `kind_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster import storage
from cluster.errors import UserError, choose
from pretrain.data.manifest import IMAGE_SUFFIXES
from pretrain.data.sources.coco import coco_records
from pretrain.data.sources.folders import folder_records
from pretrain.data.sources.records import Listing, Objects, Record, as_text
from pretrain.data.sources.tables import METADATA, Columns, table_records
from pretrain.data.sources.tars import tar_records
from pretrain.data.sources.torchvision_sets import PREFIX, torchvision_records
from pretrain.data.sources.voc import voc_records
from pretrain.data.sources.yolo import yolo_records

__all__ = ["KINDS", "Columns", "Listing", "Objects", "Record", "kind_of", "list_records"]

ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".gz", ".7z", ".rar")

# kind -> (what lists its records, the options of `list_records` that it takes)
KINDS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "folder": (folder_records, ("labels", "leave_out")),
    "coco": (coco_records, ("images",)),
    "voc": (voc_records, ()),
    "yolo": (yolo_records, ()),
    "table": (table_records, ("columns",)),
    "tar": (tar_records, ()),
    "torchvision": (torchvision_records, ("root", "download")),
}


def kind_of(src: str) -> str:
    """The kind that a source looks like: by its name where that tells, else by what its folder holds."""
    lower = src.lower()
    if src.startswith(PREFIX):
        return "torchvision"
    if lower.endswith(ARCHIVES):
        raise UserError(
            f"{src} is an archive that cannot be read in place; unpack it first (a plain .tar is read as it is)"
        )
    if lower.endswith((".csv", ".tsv", ".jsonl", ".ndjson")):
        return "table"
    if lower.endswith(".json"):
        return "coco"
    if lower.endswith(".tar"):
        return "tar"
    if lower.endswith((".yaml", ".yml")):
        return "yolo"
    names = set(storage.names_in(src)) if not any(sign in src for sign in "*?[") else set()
    endings = {name[name.rfind(".") :].lower() for name in names if "." in name}
    beside_images = bool(endings & set(IMAGE_SUFFIXES))
    if {"Annotations", "JPEGImages"} <= names or (beside_images and ".xml" in endings):
        return "voc"
    if len([name for name in names if name.endswith(".coco.json")]) == 1:
        return "coco"
    if names & set(METADATA):
        return "table"
    if {"images", "labels"} <= names or names & {"data.yaml", "data.yml"}:
        return "yolo"
    if beside_images and names & {"classes.txt", "obj.names"}:
        return "yolo"
    if ".tar" in endings and not beside_images:
        return "tar"
    return "folder"


def list_records(src: str, *, kind: str = "auto", **options: Any) -> Listing:
    """All images of a source.

    Args:
        src: folder, file, glob or `torchvision:NAME`.
        kind: one of `KINDS`, or `auto`.
        options: of any kind; those that are None, or that the kind does not know, are left out.

    Raises:
        UserError: for a source that cannot be listed.
    """
    kind = kind_of(src) if kind == "auto" else choose("value of --kind", kind, KINDS)
    function, known = KINDS[kind]
    found = function(src, **{key: value for key, value in options.items() if key in known and value is not None})
    listing = found if isinstance(found, Listing) else Listing(found)
    if not listing.records:
        first = f" (first: {listing.problems[0][0]}: {listing.problems[0][1]})" if listing.problems else ""
        raise UserError(f"{src}: not one image can be used as a {kind} source{first}")
    listing.records = list(map(as_text, listing.records))
    num_flat, first_flat = 0, ""
    for record in listing.records:
        for x, y, width, height in record.objects.bbox if record.objects else ():
            if not (width > 0 and height > 0):
                num_flat += 1
                first_flat = first_flat or f"{record.path}: x {x:g}, y {y:g}, width {width:g}, height {height:g}"
    if num_flat:
        listing.notes.append(f"{num_flat} boxes without an area are kept as they are (first: {first_flat})")
    return listing
