"""Where images to pack come from. Each kind of source is a function that lists records; nothing is read yet.

A new kind is a module here, a line in `KINDS` and, where a folder can be told to be one,
evidence in `recognising`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cluster import storage
from cluster.errors import UserError, choose
from pretrain.data.packing.sources.coco import coco_records
from pretrain.data.packing.sources.cvat import cvat_records
from pretrain.data.packing.sources.evidence import json_kind
from pretrain.data.packing.sources.folders import check_folder, folder_records
from pretrain.data.packing.sources.image_record import Objects, Record, as_text
from pretrain.data.packing.sources.labelme import labelme_records
from pretrain.data.packing.sources.recognising import recognised
from pretrain.data.packing.sources.record_list import Records
from pretrain.data.packing.sources.records import BOX_MEANINGS, Account, Listing
from pretrain.data.packing.sources.sidecars import sidecar_records
from pretrain.data.packing.sources.splits import SPLITS, TRAIN, layout_of, split_named
from pretrain.data.packing.sources.table_roles import Columns
from pretrain.data.packing.sources.tables import table_records
from pretrain.data.packing.sources.tars import tar_records
from pretrain.data.packing.sources.texts import shown
from pretrain.data.packing.sources.torchvision_sets import PREFIX, torchvision_records
from pretrain.data.packing.sources.tree import Tree, read_tree
from pretrain.data.packing.sources.voc import voc_records
from pretrain.data.packing.sources.yolo import yolo_records

__all__ = [
    "KINDS",
    "Account",
    "Columns",
    "Listing",
    "Objects",
    "Record",
    "Records",
    "Tree",
    "kind_of",
    "list_records",
]

ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".gz", ".7z", ".rar")

# kind -> (what lists its records, the options of `list_records` that it takes)
KINDS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "folder": (folder_records, ("tree", "labels", "leave_out")),
    "coco": (coco_records, ("tree", "images", "boxes", "leave_out")),
    "voc": (voc_records, ("tree", "boxes", "leave_out")),
    "yolo": (yolo_records, ("tree", "boxes", "leave_out")),
    "labelme": (labelme_records, ("tree", "leave_out")),
    "cvat": (cvat_records, ("tree", "images", "leave_out")),
    "table": (table_records, ("tree", "columns", "images", "boxes", "leave_out")),
    "sidecar": (sidecar_records, ("tree", "leave_out")),
    "tar": (tar_records, ("tree", "labels")),
    "torchvision": (torchvision_records, ("root", "download")),
}
# kinds whose splits show in the paths of their images
SPLITS_BY_FOLDER = ("voc", "labelme", "sidecar", "cvat", "yolo")


def kind_of(src: str) -> str:
    """The kind that a source looks like: by its name where that tells, else by what its folder holds."""
    named = _kind_by_name(src)
    if named is not None or not storage.exists(src):
        return named or "folder"
    return recognised(read_tree(src), src)[0]


def _kind_by_name(src: str) -> str | None:
    lower = src.lower()
    if src.startswith(PREFIX):
        return "torchvision"
    if lower.endswith(ARCHIVES):
        raise UserError(
            f"{src} is an archive that cannot be read in place; unpack it first (a plain .tar is read as it "
            "is)"
        )
    if lower.endswith((".parquet", ".pq")) and not lower.rpartition("/")[2].startswith("metadata."):
        raise UserError(
            f"{src} is Parquet, which is a data set already: read it in place (data.url={src}), or write it "
            f"with small row groups: python -m pretrain.data check {src} --fix DEST"
        )
    if lower.endswith((".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")):
        return "table"
    if lower.endswith(".json"):
        files = storage.find_files(src, "") if storage.exists(src) else []
        return "table" if files and json_kind(files[0]) == "list" else "coco"
    if lower.endswith(".xml"):
        return "cvat"
    if lower.endswith(".tar"):
        return "tar"
    return "yolo" if lower.endswith((".yaml", ".yml")) else None


def list_records(src: str, *, kind: str = "auto", **options: Any) -> Listing:
    """All images of a source.

    Args:
        src: folder, file, glob or `torchvision:NAME`.
        kind: one of `KINDS`, or `auto`.
        options: of any kind; those that are None, or that the kind does not know, are left out. `split` is
            one of `train`, `validation`, `test` (other images are left out) or `none`
            (splits of the source are not minded).

    Raises:
        UserError: for a source that cannot be listed.
    """
    split = options.pop("split", None)
    if split is not None and split != "none":
        split = split_named(split) or choose("value of --split", split, (*SPLITS, "none"))
    if (boxes := options.get("boxes")) is not None:
        choose("value of --boxes", boxes, BOX_MEANINGS)
    kind, tree, why = _recognised(src, kind, options.get("leave_out"))
    function, known = KINDS[kind]
    if boxes is not None and "boxes" not in known:
        raise UserError(
            f"--boxes says what numbers of boxes mean in {_takers('boxes')} sources; {src} is a {kind} "
            "source"
        )
    given = {**options, "tree": tree}
    listing: Listing = function(
        src, **{key: given[key] for key in given if key in known and given[key] is not None}
    )
    listing.tree = listing.tree or tree
    listing.kind = kind
    if why and kind != "folder":
        listing.told += f"; recognised by {why}"
    records = listing.records
    if records.all_have_problems():
        reasons = listing.problems or [(record.path, record.problem or "") for record in records[:1]]
        first = f" (first: {reasons[0][0]}: {reasons[0][1]})" if reasons else ""
        raise UserError(f"{src}: not one image can be used as a {kind} source{first}")
    for number, record in enumerate(records):
        if (written := as_text(record)) is not record:
            records[number] = written
    if kind in SPLITS_BY_FOLDER and set(records.num_of_split()) == {None}:
        layout = layout_of(records.paths())
        if layout.level is not None:
            for number, path in enumerate(records.paths()):
                records.put_split(number, layout.split_of(path))
    if tree is not None and kind in ("folder", *SPLITS_BY_FOLDER) and split is None:
        _check_others(src, tree, listing)
    _choose_split(listing, split, src)
    _one_kind_of_labels(listing)
    _note_flat_boxes(listing)
    listing.notes += listing.account.notes()
    return listing


def _recognised(src: str, kind: str, leave_out: str | None) -> tuple[str, Tree | None, str]:
    """The kind of a source, its files as far as the kind needs them, and by what it was recognised."""
    tree, why = None, ""
    if kind != "auto":
        choose("value of --kind", kind, KINDS)
    elif (by_name := _kind_by_name(src)) is not None:
        kind = by_name
    elif _is_folder(src):
        tree = read_tree(src, leave_out=leave_out)
        kind, why = recognised(tree, src)
    else:
        kind = "folder"
    if tree is None and kind == "folder":
        check_folder(src)
    if tree is None and (kind == "folder" or (kind != "torchvision" and _is_folder(src))):
        tree = read_tree(src, leave_out=leave_out)
    return kind, tree, why


def _is_folder(src: str) -> bool:
    return not src.startswith(PREFIX) and storage.is_folder(src)


def _takers(option: str) -> str:
    return ", ".join(kind for kind, (_, known) in KINDS.items() if option in known)


def _check_others(src: str, tree: Tree, listing: Listing) -> None:
    """Raises UserError where folders of splits lie beside others of images: a split or a class?"""
    layout = layout_of(listing.records.paths())
    if layout.others and layout.names:
        named = ", ".join(sorted(layout.names))
        raise UserError(
            f"{src} holds the folders {named}, which name splits, and also {shown(layout.others)}; --split "
            "train (or validation, "
            "test) imports one of the splits, --split none takes all folders alike"
        )


def _choose_split(listing: Listing, split: str | None, src: str) -> None:
    """Leaves the images of one split, or forgets the splits; says which splits there are otherwise."""
    records = listing.records
    num_of = records.num_of_split()
    if set(num_of) == {None}:
        if split not in (None, "none"):
            raise UserError(
                f"--split {split}: nothing in {src} says which images are for training, validation or test"
            )
        return
    told = ", ".join(f"{name} {num_of[name]}" for name in SPLITS if num_of[name])
    if split == "none":
        listing.notes.append(f"the splits of the source are ignored: {told}")
        records.forget_splits()
        return
    if split is not None:
        if not num_of[split]:
            raise UserError(f"--split {split}: {src} has {told}")
        listing.records = records.taken(records.of_split(split))
        listing.records.forget_splits()
        if num_others := len(records) - len(listing.records):
            listing.notes.append(f"{num_others} images of other splits are left out (the source has {told})")
            listing.account.unlisted = "image of another split, or that no annotation names"
        return
    if num_of[None]:
        outside = records.of_split(None).tolist()
        listing.notes.append(
            f"{num_of[None]} images belong to no split of the source and go to train (first: "
            f"{records[outside[0]].path})"
        )
        for number in outside:
            records.put_split(number, TRAIN)
    listing.notes.append(f"splits of the source: {told}")


def _one_kind_of_labels(listing: Listing) -> None:
    """Makes lists of all labels where some images have one class and others a list of them."""
    records = listing.records
    if not (records.knows("label") and records.knows("labels")) or records.knows_both_labels():
        return
    listing.notes.append("some images have one label and others a list; all are read as lists")
    for number, record in enumerate(records):
        if record.label is not None:
            records[number] = replace(record, label=None, labels=(record.label,))


def _note_flat_boxes(listing: Listing) -> None:
    num_flat, first_flat = 0, ""
    for record in listing.records if listing.records.knows("objects") else ():
        for x, y, width, height in record.objects.bbox if record.objects else ():
            if not (width > 0 and height > 0):
                num_flat += 1
                first_flat = (
                    first_flat or f"{record.path}: x {x:g}, y {y:g}, width {width:g}, height {height:g}"
                )
    if num_flat:
        listing.notes.append(f"{num_flat} boxes without an area are kept as they are (first: {first_flat})")
        listing.account.count("box without an area, kept", first_flat, num_flat, said=True)
