"""Pascal VOC (http://host.robots.ox.ac.uk/pascal/VOC/): an xml file with boxes for each image."""

from __future__ import annotations

import math
import posixpath
import re
from dataclasses import dataclass, field
from typing import Any
from xml.parsers.expat import ErrorString  # the texts of errors; nothing is parsed with it

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from cluster.errors import UserError
from pretrain.data.packing.sources.evidence import Evidence
from pretrain.data.packing.sources.finding import set_aside_elsewhere
from pretrain.data.packing.sources.image_record import Objects, Record
from pretrain.data.packing.sources.record_list import Records
from pretrain.data.packing.sources.records import Listing, around, as_sizes, numbers, read_small, unique
from pretrain.data.packing.sources.texts import clean, none_read
from pretrain.data.packing.sources.tree import Tree, read_tree, stem_of

_DECLARED = re.compile(rb"^\s*<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"'][^>]*\?>")


def voc_records(
    src: str, *, tree: Tree | None = None, boxes: str | None = None, leave_out: str | None = None
) -> Listing:
    """The images below `src` that an xml file of their name (or its <filename>) speaks of, with boxes.

    Of several images of that name the one in JPEGImages or beside the xml file is taken.

    VOC's boxes are corners; one-pixel offsets of the original tools are left as they are. An object that
    cannot be read costs itself; an image whose objects all cannot is set aside.

    Raises:
        UserError: when there is no xml file.
    """
    tree = tree or read_tree(src, leave_out=leave_out)
    images = tree.images
    annotations = Evidence(tree).xml_files("voc") or tree.with_suffix(".xml")
    if not annotations:
        raise UserError(f"no .xml files in {src} or its sub-folders; Pascal VOC has one for each image")
    told = f"Pascal VOC: {len(annotations)} xml files (first: {annotations[0]})"
    listing = Listing(Records(tree.files), told=told, tree=tree)
    spoken: dict[str, str] = {}
    far: dict[str, str] = {}  # images that lie elsewhere, URL -> path
    for path, data in zip(annotations, read_small(tree.files[path] for path in annotations), strict=True):
        parsed = _parsed(data, boxes or "xyxy", path, tree, listing)
        if parsed is None:
            continue
        listing.account.read.add(path)
        listing.account.annotations += parsed.num_objects
        listing.problems += [(path, problem) for problem in parsed.problems]
        found = _images_of(path, parsed.filename, tree)
        if len(found) != 1:
            what = "no image" if not found else f"{len(found)} images ({', '.join(found[:3])})"
            listing.problems.append((path, f"{what} of its name below {src}"))
            spoken.update(dict.fromkeys(found, path))
            for name in found:
                listing.account.left[name] = f"one of {len(found)} images that {path} may mean"
            continue
        file = images[found[0]]
        problem = None
        if parsed.problems and not parsed.objects.bbox:
            problem = none_read("objects", parsed.problems[0])
        spoken[found[0]] = path
        if posixpath.dirname(found[0]) not in _folders_of(path):
            far[file.url] = found[0]
        listing.records.append(
            Record(
                file.url,
                found[0],
                file.size_bytes,
                objects=parsed.objects,
                frame=parsed.frame,
                relative_boxes=boxes == "fractions",
                problem=problem,
            )
        )
    if len(far) * 2 < len(listing.records):
        set_aside_elsewhere(listing, far)
    listing.records = unique(listing.records, src)
    masks = [path for path in images if path not in spoken and "Segmentation" in path]
    listing.account.left.update(dict.fromkeys(masks, "mask of an image"))
    listing.account.unlisted = "image without an xml file"
    if unspoken := sum(path not in spoken and path not in listing.account.left for path in images):
        listing.notes.append(f"{unspoken} images without an xml file are left out")
    return listing


def _parsed(data: bytes, meaning: str, path: str, tree: Tree, listing: Listing) -> Voc | None:
    """What an xml file says; None for a damaged one, whose image is left out: it is none without objects."""
    location, what = path, "not a VOC annotation: "
    try:
        return parse_voc(data, meaning)
    except ParseError as error:
        line, column = error.position
        location, what = f"{path}, line {line}", ""
        reason = f"not valid XML: {ErrorString(error.code)} (column {column})"
    except DefusedXmlException:
        reason = "entities or references to other files are not read"
    except (ValueError, LookupError) as error:
        reason = str(error)
    listing.problems.append((location, what + reason))
    listing.account.read.add(path)
    listing.account.annotations += 1
    for image in _images_of(path, "", tree)[:1]:
        listing.account.left[image] = f"image whose annotation cannot be read ({reason})"
    return None


def _images_of(annotation: str, name: str, tree: Tree) -> list[str]:
    """The image that an xml file speaks of, or all that it may be."""
    name = name.replace("\\", "/")
    found = tree.by_stem.get(stem_of(annotation)) or tree.by_stem.get(stem_of(name))
    # VOC keeps masks by the same names in SegmentationClass and SegmentationObject
    folders = _folders_of(annotation)
    for rule in (
        lambda path: posixpath.dirname(path) in folders,
        lambda path: posixpath.basename(path) == posixpath.basename(name),
    ):
        if len(found) > 1:
            found = list(filter(rule, found)) or found
    return found


def _folders_of(annotation: str) -> set[str]:
    """Where the image of an xml file lies, as VOC and its followers have it."""
    folder = posixpath.dirname(annotation)
    others = ("JPEGImages", "images", "imgs", "Images")
    parts = folder.split("/")
    return {folder} | {
        "/".join(name if part.lower() == "annotations" else part for part in parts) for name in others
    }


@dataclass
class Voc:
    """What an xml file says."""

    filename: str
    frame: tuple[float, float] | None
    objects: Objects
    num_objects: int = 0
    problems: list[str] = field(default_factory=list)


def parse_voc(data: bytes, meaning: str = "xyxy") -> Voc:
    """One annotation. Raises ValueError for what is none, ParseError for what is no XML."""
    root = _root(data)
    if root.tag != "annotation":
        raise ValueError(f"its root is <{root.tag}>, not <annotation>")
    size = numbers([_float(root.findtext(f"size/{side}")) for side in ("width", "height")], 2)
    found = Voc(
        root.findtext("filename") or "",
        (size[0], size[1]) if size and min(size) > 0 else None,
        Objects((), ()),
    )
    boxes, names = [], []
    for number, item in enumerate(root.iter("object"), 1):
        found.num_objects += 1
        name = clean(item.findtext("name") or "")
        try:
            box = _box_of(item, meaning)
        except LookupError:
            box = None
            if name:
                found.problems.append(f"object {number}{_line(data, number)} has no name or no bndbox")
                continue
        except ValueError:
            found.problems.append(
                f"object {number}{_line(data, number)} has a bndbox that is not four numbers"
            )
            continue
        if not name or box is None:
            found.problems.append(f"object {number}{_line(data, number)} has no name or no bndbox")
            continue
        boxes.append(box)
        names.append(name)
    found.objects = Objects(tuple(boxes), tuple(names))
    return found


def _root(data: bytes) -> Any:
    declared = _DECLARED.match(data.removeprefix(b"\xef\xbb\xbf"))
    if declared is None:
        return fromstring(data)
    try:
        return fromstring(data)
    except (ParseError, ValueError, LookupError) as first:
        # expat knows few encodings; Python those that annotation programs of all countries write
        try:
            text = data.decode(declared.group(1).decode())
        except (LookupError, ValueError):
            raise first from None
        return fromstring(re.sub(r"^\ufeff?\s*<\?xml[^>]*\?>", "", text))


def _box_of(item: Any, meaning: str) -> tuple[float, float, float, float]:
    """An object's box: `bndbox`, or around its polygon. Raises LookupError without, ValueError for none."""
    box = item.find("bndbox")
    if box is not None:
        corners = numbers([_float(box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax")], 4)
        if corners is None:
            raise ValueError
        return as_sizes(corners, meaning if meaning in ("xywh", "cxcywh") else "xyxy")
    polygon = item.find("polygon")
    if polygon is None:
        raise LookupError
    xs = [_float(element.text) for element in polygon if re.fullmatch(r"x\d*", element.tag)]
    ys = [_float(element.text) for element in polygon if re.fullmatch(r"y\d*", element.tag)]
    points = [(_float(point.findtext("x")), _float(point.findtext("y"))) for point in polygon.iter("pt")]
    points = points or list(zip(xs, ys, strict=False))
    if (
        len(points) < 3
        or len(xs) != len(ys)
        or not all(math.isfinite(value) for point in points for value in point)
    ):
        raise LookupError
    return around(points)


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
