"""Pascal VOC (http://host.robots.ox.ac.uk/pascal/VOC/): an xml file with boxes for each image."""

from __future__ import annotations

import math
import posixpath
import re
from collections import defaultdict
from xml.parsers.expat import ErrorString  # the texts of errors; nothing is parsed with it

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from cluster.errors import UserError
from pretrain.data.manifest import IMAGE_SUFFIXES
from pretrain.data.sources.records import Listing, Objects, Record, files_below, numbers, read_small, unique


def voc_records(src: str) -> Listing:
    """The images below `src` that an xml file of the same name (or its <filename>) speaks of, with their boxes.

    Of several images of that name the one in JPEGImages or beside the xml file is taken.

    VOC's boxes are corners; one-pixel offsets of the original tools are left as they are.

    Raises:
        UserError: when there is no xml file.
    """
    images = files_below(src, IMAGE_SUFFIXES)
    annotations = files_below(src, (".xml",))
    if not annotations:
        raise UserError(f"no .xml files in {src} or its sub-folders; Pascal VOC has one for each image")
    by_stem: defaultdict[str, list[str]] = defaultdict(list)
    for path in images:
        by_stem[_stem(path)].append(path)
    listing = Listing([])
    for path, text in zip(annotations, read_small(annotations.values()), strict=True):
        try:
            name, objects = _parse(text)
        except ParseError as error:
            line, column = error.position
            listing.problems.append(
                (f"{path}, line {line}", f"not valid XML: {ErrorString(error.code)} (column {column})")
            )
            continue
        except DefusedXmlException:
            listing.problems.append((path, "not a VOC annotation: entities or references to other files are not read"))
            continue
        except (ValueError, LookupError) as error:
            listing.problems.append((path, f"not a VOC annotation: {error}"))
            continue
        found = _images_of(path, name or "", by_stem)
        if len(found) != 1:
            what = "no image" if not found else f"{len(found)} images ({', '.join(found[:3])})"
            listing.problems.append((path, f"{what} of its name below {src}"))
            continue
        file = images[found[0]]
        listing.records.append(Record(file.url, found[0], file.size_bytes, objects=objects))
    listing.records = unique(listing.records, src)
    if unspoken := len(images) - len(listing.records):
        listing.notes.append(f"{unspoken} images without an xml file are left out")
    return listing


def _images_of(annotation: str, name: str, by_stem: dict[str, list[str]]) -> list[str]:
    """The image that an xml file speaks of, or all that it may be."""
    found = by_stem.get(_stem(annotation)) or by_stem.get(_stem(name)) or []
    folder = posixpath.dirname(annotation)
    # VOC keeps masks by the same names in SegmentationClass and SegmentationObject
    images = "/".join("JPEGImages" if part == "Annotations" else part for part in folder.split("/"))
    for rule in (
        lambda path: posixpath.dirname(path) in (images, folder),
        lambda path: posixpath.basename(path) == posixpath.basename(name),
    ):
        if len(found) > 1:
            found = list(filter(rule, found)) or found
    return found


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def _parse(text: bytes) -> tuple[str | None, Objects]:
    """(<filename>, objects). Raises ValueError for what is no annotation."""
    root = fromstring(text)
    if root.tag != "annotation":
        raise ValueError(f"its root is <{root.tag}>, not <annotation>")
    boxes, names = [], []
    for number, item in enumerate(root.iter("object"), 1):
        name = (item.findtext("name") or "").strip()
        box = item.find("bndbox")
        if not name or box is None:
            raise ValueError(f"object {number}{_line(text, number)} has no name or no bndbox")
        corners = numbers([_float(box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax")], 4)
        if corners is None:
            raise ValueError(f"object {number}{_line(text, number)} has a bndbox that is not four numbers")
        left, top, right, bottom = corners
        boxes.append((left, top, right - left, bottom - top))
        names.append(name)
    return root.findtext("filename"), Objects(tuple(boxes), tuple(names))


def _line(text: bytes, number: int) -> str:
    """Where the object with this number begins, as far as the bytes tell."""
    starts = [match.start() for match in re.finditer(rb"<object\b", text)]
    if number > len(starts):
        return ""
    newlines = text.count(b"\n", 0, starts[number - 1])
    return f" (line {newlines + 1})"


def _float(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
