"""LabelMe (https://github.com/wkentaro/labelme): a json file with shapes for each image, beside it."""

from __future__ import annotations

import json
import math
import posixpath
from typing import Any

from cluster.errors import UserError
from pretrain.data.packing.sources.evidence import Evidence
from pretrain.data.packing.sources.finding import Finder
from pretrain.data.packing.sources.image_record import Objects, Record
from pretrain.data.packing.sources.record_list import Records
from pretrain.data.packing.sources.records import Listing, around, numbers, read_small, unique
from pretrain.data.packing.sources.texts import clean, decode_text, none_read, shown
from pretrain.data.packing.sources.tree import Tree, read_tree

BOXED = ("rectangle", "polygon", "circle", "linestrip", "line", "rotation", "mask", "rotated_rectangle")


def labelme_records(src: str, *, tree: Tree | None = None, leave_out: str | None = None) -> Listing:
    """The images that json files of LabelMe speak of, with the boxes around their shapes.

    Rectangles, polygons, circles and lines have boxes; points have none and are counted.
    An image without a json is left out.

    Raises:
        UserError: when there is no such file.
    """
    tree = tree or read_tree(src, leave_out=leave_out)
    evidence = Evidence(tree)
    files = evidence.json_files("labelme")
    if not files:
        raise UserError(f"no .json file in {src} has `shapes`; LabelMe has one for each image")
    told = f"LabelMe: {len(files)} json files with shapes (first: {files[0]})"
    listing = Listing(Records(tree.files), told=told, tree=tree)
    finder = Finder(tree)
    for path, data in zip(files, read_small(tree.files[path] for path in files), strict=True):
        listing.account.read.add(path)
        image = evidence.image_of(path)
        try:
            content = json.loads(decode_text(data)[0])
            if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
                raise ValueError("it has no list `shapes`")
        except (ValueError, RecursionError) as error:
            listing.problems.append((path, f"not a LabelMe annotation: {error}"))
            listing.account.annotations += 1
            if image is not None:
                listing.account.left[image] = "image whose annotation cannot be read"
            continue
        try:
            image = _image_of(path, content.get("imagePath"), image, finder)
            if image is None:
                raise ValueError(f"no image of its name below {src}")
        except ValueError as error:
            listing.problems.append((path, str(error)))
            continue
        objects, bad = _objects(content["shapes"], path, listing)
        size = numbers([content.get("imageWidth"), content.get("imageHeight")], 2)
        problem = None
        if bad and not objects.bbox:
            problem = none_read(f"{len(bad)} shapes", bad[0])
        file = tree.images[image]
        listing.records.append(
            Record(
                file.url,
                image,
                file.size_bytes,
                objects=objects,
                frame=(size[0], size[1]) if size and min(size) > 0 else None,
                problem=problem,
            )
        )
    listing.records = unique(listing.records, src)
    listing.account.unlisted = "image without a json file"
    if unspoken := len(tree.images.keys() - set(listing.records.paths()) - listing.account.left.keys()):
        listing.notes.append(f"{unspoken} images without a json file are left out")
    finder.finish(listing)
    return listing


def _image_of(path: str, named: Any, beside: str | None, finder: Finder) -> str | None:
    """The image that a json file names, or the one beside it; None for neither. Raises ValueError."""
    if not isinstance(named, str) or not named.strip():
        return beside
    finder.bases = (posixpath.dirname(path), "")
    try:
        found = finder.find(named, "imagePath")
    except ValueError:
        if beside is None:
            raise
        return beside
    # images are renamed with their json, which then still has the old name
    return beside if beside is not None and found.base is None else found.path or beside


def _objects(shapes: list[Any], location: str, listing: Listing) -> tuple[Objects, list[str]]:
    boxes, names, bad = [], [], []
    for index, shape in enumerate(shapes):
        listing.account.annotations += 1
        try:
            if not isinstance(shape, dict):
                raise ValueError("is no object")
            name = clean(str(shape.get("label") or ""))
            if not name:
                raise ValueError("has no label")
            box = _box(shape)
        except ValueError as error:
            reason = f"shapes[{index}] {error}"
            listing.problems.append((location, reason))
            bad.append(reason)
            continue
        if box is None:
            listing.account.count(
                f"shape without a box ({shape.get('shape_type')})", f"{location}: shapes[{index}]"
            )
            continue
        boxes.append(box)
        names.append(name)
    return Objects(tuple(boxes), tuple(names)), bad


def _box(shape: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """The box around a shape; None for points. Raises ValueError."""
    kind = shape.get("shape_type") or "polygon"
    points = shape.get("points")
    pairs = [numbers(point, 2) for point in points] if isinstance(points, list) else []
    if kind in ("point", "points"):
        return None
    if kind not in BOXED:
        raise ValueError(f"is a {kind!r} (known: {shown(BOXED, 9)})")
    if len(pairs) < 2 or any(pair is None for pair in pairs):
        raise ValueError(f"has points that are not two numbers each: {str(points)[:60]}")
    known = [(pair[0], pair[1]) for pair in pairs if pair is not None]
    if kind == "circle":  # the centre and a point of the edge
        (x, y), edge = known[0], known[1]
        radius = math.dist((x, y), edge)
        return x - radius, y - radius, 2 * radius, 2 * radius
    return around(known)
