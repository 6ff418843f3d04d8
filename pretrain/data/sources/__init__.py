"""Where images to pack come from. Each kind of source is a function that lists records; nothing is read yet.

A new kind is a module here, a line in `KINDS` and, if it can be told from the look of a source, one in `kind_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster import storage
from cluster.errors import UserError, choose
from pretrain.data.sources.coco import coco_records
from pretrain.data.sources.folders import folder_records
from pretrain.data.sources.records import Listing, Objects, Record
from pretrain.data.sources.tables import Columns, table_records
from pretrain.data.sources.tars import tar_records
from pretrain.data.sources.torchvision_sets import PREFIX, torchvision_records
from pretrain.data.sources.voc import voc_records
from pretrain.data.sources.yolo import yolo_records

__all__ = ["KINDS", "Columns", "Listing", "Objects", "Record", "kind_of", "list_records"]

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
    if lower.endswith((".csv", ".tsv", ".jsonl", ".ndjson")):
        return "table"
    if lower.endswith(".json"):
        return "coco"
    if lower.endswith(".tar"):
        return "tar"
    names = set(storage.names_in(src)) if not any(sign in src for sign in "*?[") else set()
    if {"Annotations", "JPEGImages"} <= names:
        return "voc"
    if {"images", "labels"} <= names or names & {"data.yaml", "data.yml"}:
        return "yolo"
    if any(name.endswith(".tar") for name in names):
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
    return listing
