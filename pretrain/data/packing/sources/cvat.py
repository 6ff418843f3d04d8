"""CVAT for images (https://docs.cvat.ai/docs/manual/advanced/xml_format/):
one xml with the shapes of many images.
"""

from __future__ import annotations

import math
import posixpath
from typing import Any
from xml.parsers.expat import ErrorString  # the texts of errors; nothing is parsed with it

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from cluster import storage
from cluster.errors import UserError
from pretrain.data.packing.sources.evidence import Evidence
from pretrain.data.packing.sources.finding import Finder
from pretrain.data.packing.sources.image_record import Objects, Record
from pretrain.data.packing.sources.record_list import Records
from pretrain.data.packing.sources.records import Listing, around, numbers, unique
from pretrain.data.packing.sources.splits import split_named
from pretrain.data.packing.sources.texts import clean, none_read, shown
from pretrain.data.packing.sources.tree import Tree, read_tree

SHAPES = ("box", "polygon", "polyline", "ellipse", "mask")


def cvat_records(
    src: str, *, tree: Tree | None = None, images: str | None = None, leave_out: str | None = None
) -> Listing:
    """The images that CVAT's xml files list, with the upright boxes around their shapes;
    an image without any is background.

    Of a turned box or ellipse the upright box around it is taken, as of polygons.

    The subset of an image (Train, Validation, Test) is its split.

    Raises:
        UserError: when there is no such file, it is damaged, or it is one of a video,
            whose frames are in no files.
    """
    name = ""
    if src.lower().endswith(".xml"):
        src, _, name = src.rpartition("/")
        src, tree = src or ".", None
    tree = tree or read_tree(src, leave_out=leave_out)
    files = [name] if name else Evidence(tree).xml_files("cvat")
    if not files:
        raise UserError(f"no .xml file in {src} has <annotations> as its root, as CVAT's has")
    listing = Listing(Records(tree.files), told=f"CVAT: {shown(files)}", tree=tree)
    finder = Finder(tree, outside=(images,) if images else ())
    for path in files:
        finder.bases = tuple(
            dict.fromkeys((posixpath.join(posixpath.dirname(path), "images"), posixpath.dirname(path), ""))
        )
        listing.account.read.add(path)
        _read(storage.join(src, path), finder, listing)
    listing.records = unique(listing.records, src)
    finder.finish(listing)
    return listing


def _read(url: str, finder: Finder, listing: Listing) -> None:
    try:
        root = fromstring(storage.read_bytes(url))
    except ParseError as error:
        line, column = error.position
        raise UserError(
            f"{url}, line {line}: not valid XML: {ErrorString(error.code)} (column {column})"
        ) from error
    except (DefusedXmlException, ValueError, LookupError) as error:
        raise UserError(f"{url} is not a CVAT annotation: {error}") from error
    if root.tag != "annotations":
        raise UserError(f"{url} is not a CVAT annotation: its root is <{root.tag}>, not <annotations>")
    if root.find("track") is not None and root.find("image") is None:
        raise UserError(
            f"{url} is CVAT's xml of a video; export the task as `CVAT for images`, which names its images"
        )
    for number, item in enumerate(root.iter("image"), 1):
        location = f"{url}: image {number}"
        try:
            found = finder.find(item.get("name"), "name")
        except ValueError as error:
            listing.problems.append((location, str(error)))
            continue
        boxes, names, bad = [], [], []
        for shape in item:
            if shape.tag in ("tag", "points", "skeleton", "cuboid"):
                listing.account.count(f"shape without a box (<{shape.tag}>)", location)
                continue
            if shape.tag not in SHAPES:
                continue
            listing.account.annotations += 1
            label = clean(shape.get("label") or "")
            box = _box(shape)
            if not label or box is None:
                reason = f"<{shape.tag}> of {found.name} has no label or no numbers"
                listing.problems.append((location, reason))
                bad.append(reason)
                continue
            if shape.get("rotation") not in (None, "0", "0.0", "0.00"):
                listing.account.count(
                    f"rotated <{shape.tag}>, for which the upright box around it is taken", location
                )
            boxes.append(box)
            names.append(label)
        size = numbers([item.get("width"), item.get("height")], 2)
        listing.records.append(
            Record(
                found.url,
                found.path or found.name,
                objects=Objects(tuple(boxes), tuple(names)),
                frame=(size[0], size[1]) if size and min(size) > 0 else None,
                split=split_named(item.get("subset") or ""),
                problem=none_read(f"{len(bad)} shapes", bad[0]) if bad and not boxes else None,
            )
        )


def _box(shape: Any) -> tuple[float, float, float, float] | None:
    """The box around a shape, upright where the shape is turned; None for numbers that are none."""
    if shape.tag in ("box", "ellipse"):
        keys = ("xtl", "ytl", "xbr", "ybr") if shape.tag == "box" else ("cx", "cy", "rx", "ry")
        four = numbers([shape.get(key) for key in keys], 4)
        turn = numbers([shape.get("rotation") or 0], 1)
        if four is None or turn is None:
            return None
        a, b, c, d = four
        cosine, sine = abs(math.cos(math.radians(turn[0]))), abs(math.sin(math.radians(turn[0])))
        if shape.tag == "box":
            if not turn[0]:
                return a, b, c - a, d - b
            x, y, half_width, half_height = (a + c) / 2, (b + d) / 2, (c - a) / 2, (d - b) / 2
            across, down = half_width * cosine + half_height * sine, half_width * sine + half_height * cosine
        else:
            x, y = a, b
            across, down = math.hypot(c * cosine, d * sine), math.hypot(c * sine, d * cosine)
        return x - across, y - down, 2 * across, 2 * down
    if shape.tag == "mask":
        return numbers([shape.get(key) for key in ("left", "top", "width", "height")], 4)  # type: ignore[return-value]
    points = [
        numbers(point.split(","), 2) for point in (shape.get("points") or "").split(";") if point.strip()
    ]
    if len(points) < 2 or any(point is None for point in points):
        return None
    return around((point[0], point[1]) for point in points if point is not None)
