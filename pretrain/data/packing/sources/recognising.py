"""What kind of source a folder is, by the evidence of all that lies in it;
where two readings fit, the user is asked.
"""

from __future__ import annotations

import posixpath
from itertools import chain

from cluster.errors import UserError
from pretrain.data.packing.sources.evidence import Evidence
from pretrain.data.packing.sources.splits import layout_of
from pretrain.data.packing.sources.table_finding import names_images
from pretrain.data.packing.sources.table_roles import METADATA
from pretrain.data.packing.sources.texts import shown
from pretrain.data.packing.sources.tree import Tree


def readings_of(tree: Tree) -> dict[str, str]:
    """kind -> why, for each kind of annotation that a tree gives evidence of;
    empty for a folder of images alone.
    """
    evidence = Evidence(tree)
    found: dict[str, str] = {}
    tars = tree.with_suffix(".tar")
    if tars and len(tree.images) * 4 < len(tars):
        return {"tar": f"{len(tars)} tars"}
    if tars:
        found["tar"] = f"{len(tars)} tars (first: {tars[0]})"
    if coco := evidence.json_files("coco"):
        found["coco"] = f"{shown(coco)} with `images` and `annotations`"
    voc = evidence.xml_files("voc") if tree.images else []
    if voc or _has_voc_folders(tree):
        found["voc"] = f"{len(voc)} xml files with <annotation>"
    if not tree.images:
        return found
    if cvat := evidence.xml_files("cvat"):
        found["cvat"] = f"{shown(cvat)} with <annotations>"
    if labelme := evidence.json_files("labelme"):
        found["labelme"] = f"{len(labelme)} json files with `shapes` beside images (first: {labelme[0]})"
    if evidence.texts_are == "boxes" or (
        evidence.name_files and evidence.texts and evidence.texts_are != "captions"
    ):
        names = f", and {shown(evidence.name_files, 2)}" if evidence.name_files else ""
        found["yolo"] = f"{len(evidence.texts)} txt files of numbers for images{names}"
    tables = [path for path in evidence.tables if posixpath.basename(path).lower() in METADATA]
    if tables:
        found["table"] = f"{shown(tables)}, as Hugging Face's image folders have"
    else:
        tables = [
            path for path in (*evidence.tables, *evidence.json_files("list")) if names_images(tree, path)
        ]
        if tables:
            found["table"] = f"{shown(tables)} names images that are here"
    if captions := evidence.captions_beside:
        found["sidecar"] = f"{len(captions)} texts beside images (first: {captions[0]})"
    return found


def _has_voc_folders(tree: Tree) -> bool:
    tops = (path.partition("/")[0] for path in chain(tree.files, tree.empty_folders))
    return len({top for top in tops if top in ("Annotations", "JPEGImages")}) == 2


def recognised(tree: Tree, src: str) -> tuple[str, str]:
    """(kind, why) of a folder. Raises UserError where several fit, naming the option for each."""
    found = readings_of(tree)
    if "coco" in found and "sidecar" in found and not Evidence(tree).texts:
        del found["sidecar"]  # a json of COCO may have the name of an image
    if len(found) > 1:
        ways = "; ".join(f"--kind {kind}: {why}" for kind, why in found.items())
        raise UserError(
            f"{src} can be read in {len(found)} ways, and a program cannot tell which is meant: {ways}"
        )
    if not found:
        return "folder", "images, and no known annotation"
    kind, why = next(iter(found.items()))
    if (
        kind == "table"
        and not any(posixpath.basename(path).lower() in METADATA for path in tree.others())
        and has_class_folders(tree)
    ):
        raise UserError(
            f"{src} can be read in 2 ways, and a program cannot tell which is meant: --kind table: {why}; "
            "--kind folder: its images lie in class folders"
        )
    return kind, why


def has_class_folders(tree: Tree) -> bool:
    """Whether the images lie exactly one folder deep, in two folders or more,
    below the folders of splits.
    """
    layout = layout_of(tree.images)
    start = 0 if layout.level is None else layout.level + 1
    folders = {"/".join(path.split("/")[start:-1]) for path in tree.images}
    return len(folders) >= 2 and "" not in folders and not any("/" in folder for folder in folders)
