"""COCO json (https://cocodataset.org/#format-data): boxes or captions of images that files list."""

from __future__ import annotations

import posixpath
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from cluster import storage
from cluster.errors import UserError
from pretrain.data.packing.sources.coco_content import Content, LeftOut
from pretrain.data.packing.sources.coco_images import ImageEntry, Images
from pretrain.data.packing.sources.coco_joined import ImageSaid
from pretrain.data.packing.sources.evidence import Evidence
from pretrain.data.packing.sources.finding import Finder, Found
from pretrain.data.packing.sources.image_record import Objects, Record
from pretrain.data.packing.sources.record_list import Distinct, Records
from pretrain.data.packing.sources.records import Listing, unique
from pretrain.data.packing.sources.splits import layout_of, split_in_name
from pretrain.data.packing.sources.texts import none_read, shown
from pretrain.data.packing.sources.tree import Tree, read_parts, read_tree

# other files of a COCO download, which are left for the instances:
# points of bodies, regions without shape, ids alone
BESIDES = ("person_keypoints", "stuff", "panoptic", "image_info", "pixelmaps")
MAX_PROBED = 20  # images, whose paths tell the folder


def coco_records(
    src: str,
    *,
    tree: Tree | None = None,
    images: str | None = None,
    boxes: str | None = None,
    leave_out: str | None = None,
) -> Listing:
    """The images of an annotation file with their boxes and captions, as far as the file has them.

    Crowd regions are left out and counted in a note, since they are no single objects; an image with nothing
    else is set aside. Where there is no `bbox`, the box around the `segmentation` is taken.

    Args:
        src: the json file, local or in any store; or a folder with one, with one for each split, or with
            several of the same images (instances and captions).
        tree: of `src`, where it is known already.
        images: the folder that `file_name` is relative to; by default a folder `images`, or one named like
            the file, beside the file or one level up, else the file's own folder.
        boxes: what the numbers of `bbox` are, one of `BOX_MEANINGS`; by default (left, top, width, height)
            in pixels.
        leave_out: a folder to pass over.

    Raises:
        UserError: when the file is no COCO json.
    """
    if src.lower().endswith(".json"):
        return _of_file(src, images, boxes)
    tree = tree or read_tree(src, leave_out=leave_out)
    evidence = Evidence(tree)
    files = evidence.json_files("coco")
    if not files:
        names = [posixpath.basename(path) for path in tree.with_suffix(".json")]
        held = f"it holds {shown(names)}" if names else "there is none in it"
        raise UserError(f"{src} is not a .json file; give the annotation file ({held})")
    if len(files) == 1 and "/" not in files[0]:
        return _of_file(storage.join(src, files[0]), images, boxes, tree=tree)
    return _of_files(src, tree, files, images, boxes)


def _of_file(src: str, images: str | None, boxes: str | None, *, tree: Tree | None = None) -> Listing:
    content = Content(src, boxes)
    beside, _, name = src.rpartition("/")
    folder = images if images is not None else _folder(src, content.images)
    inside = images is None and (folder == (beside or ".") or folder.startswith(f"{beside}/"))
    if tree is None or not inside:
        tree = _named_part(folder, content.images) if storage.exists(folder) else Tree(folder)
        finder = Finder(tree)
    else:
        finder = Finder(tree, bases=(folder.removeprefix(beside).strip("/"), ""))
    listing = Listing(Records(tree.files), told=f"COCO json {src}, with the images in {folder}", tree=tree)
    listing.account.read.add(name)
    _records(content, finder, listing, split=None, by_path=False)
    left_out = content.left_out
    del content  # what follows sorts all records, and needs the room
    _finish(listing, [left_out], finder, src)
    return listing


def _named_part(folder: str, images: Images) -> Tree:
    """The files below what a folder and names share: `--images /` with absolute paths is not the disk."""

    def inner() -> Iterator[str]:
        return (name.replace("\\", "/").strip("/") for name in images.names() if "://" not in name)

    # what the first and the last of a sorted list share, all share
    common = posixpath.dirname(posixpath.commonprefix([min(inner(), default=""), max(inner(), default="")]))
    if not common or ".." in common.split("/") or not storage.is_folder(storage.join(folder, common)):
        return read_tree(folder)
    return read_parts(folder, [common])


def _of_files(src: str, tree: Tree, files: Sequence[str], images: str | None, boxes: str | None) -> Listing:
    """The images of several files: one for each split, or that say other things of the same images."""
    layout = layout_of(tree.images)
    listing = Listing(Records(tree.files), told=f"COCO: {shown(files)}", tree=tree)
    kept = [path for path in files if not posixpath.basename(path).startswith(BESIDES)] or list(files)
    for path in files:
        if path not in kept:
            listing.account.left[path] = f"COCO json of another task; {shown(kept, 2)} are read"
    finder = Finder(tree, outside=(images,) if images else ())
    left_out = []
    found = Distinct(listing.records, lambda record: f"{record.split or ''} {record.path}")
    boxes_of = array("i")  # of each record the number of the file that its boxes are from, -1 for none
    for index, path in enumerate(kept):
        split = layout.split_of(path) or split_in_name(path)
        part = Listing(Records(tree.files))
        finder.bases = tuple(dict.fromkeys([*_usual_folders(path), posixpath.dirname(path), ""]))
        left_out.append(
            _records(Content(storage.join(src, path), boxes), finder, part, split=split, by_path=True)
        )
        listing.account.read.add(path)
        listing.problems += part.problems
        listing.account.annotations += part.account.annotations
        for record in part.records:
            number = found.add(record)
            if number is None:
                boxes_of.append(index if record.objects is not None else -1)
                continue
            earlier = found.records[number]
            if earlier.objects is not None and record.objects is not None:
                raise UserError(
                    f"{src}: {kept[boxes_of[number]]} and {path} both have boxes of {record.path}; give "
                    "the one you mean"
                )
            found.records[number] = replace(
                earlier,
                objects=earlier.objects or record.objects,
                captions=earlier.captions or record.captions,
                frame=earlier.frame or record.frame,
                problem=earlier.problem or record.problem,
            )
            if record.objects is not None:
                boxes_of[number] = index
    _finish(listing, left_out, finder, src)
    return listing


def _usual_folders(path: str) -> list[str]:
    """Folders of a tree in which the images of a json file may lie, the likeliest first."""
    beside = posixpath.dirname(path)
    above = posixpath.dirname(beside)
    stem = posixpath.basename(path).partition(".")[0]
    part = stem.rpartition("_")[2]  # annotations/instances_train2017.json speaks of train2017
    folders = [posixpath.join(base, name) for base in (above, beside) for name in (part, stem)]
    return folders + [
        posixpath.join(base, "images", name) for base in (above, beside) for name in (part, stem, "")
    ]


def _records(
    content: Content, finder: Finder, listing: Listing, *, split: str | None, by_path: bool
) -> LeftOut:
    """Adds a record for each image of a file, and returns what is left out.
    `by_path` names it by its path below the source.
    """
    src = content.src
    listing.problems += content.problems()
    listing.account.annotations += content.num_annotations
    merged = Distinct(listing.records, lambda record: record.url)
    for index, entry in enumerate(content.images):
        if not entry.name:
            listing.problems.append((f"{src}: images[{index}]", "no file_name"))
            continue
        try:
            found = _found(finder, entry)
        except ValueError as error:
            listing.problems.append((f"{src}: images[{index}]", str(error)))
            continue
        path = found.path if by_path and found.path else found.name
        record = _record(content, entry, found.url, path, split)
        if (number := merged.add(record)) is not None:
            merged.records[number] = _joined(merged.records[number], record)
            listing.account.count(
                "entry of an image that is listed above; joined with it", f"{src}: images[{index}]"
            )
    return content.left_out


def _record(content: Content, entry: ImageEntry, url: str, path: str, split: str | None) -> Record:
    said = content.said.said(entry.group)
    with_boxes = content.has_categories or content.said.has_boxes
    objects = (
        Objects(tuple(box for box, _ in said.boxes), tuple(category for _, category in said.boxes))
        if with_boxes
        else None
    )
    return Record(
        url=url,
        path=path,
        objects=objects,
        captions=tuple(dict.fromkeys(said.captions)) if content.said.has_captions else None,
        relative_boxes=content.meaning == "fractions",
        frame=entry.frame,
        split=split,
        problem=_problem(said),
    )


def _found(finder: Finder, entry: ImageEntry) -> Found:
    name = entry.name
    if not entry.has_file_name and "://" in name:
        # LVIS has addresses alone, whose ends are the files of a COCO download
        for end in ("/".join(name.split("/")[-2:]), name.rpartition("/")[2]):
            found = finder.find(end, "coco_url")
            if found.path is not None:
                return found
        return finder.find(name, "coco_url")
    return finder.find(name, "file_name")


def _problem(said: ImageSaid) -> str | None:
    if said.boxes or not (said.num_bad or said.num_crowds):
        return None
    if said.num_bad:
        return none_read(f"{said.num_bad} boxes", str(said.first_bad))
    return f"it has only crowd regions ({said.num_crowds}); it would look like an image without objects"


def _joined(first: Record, second: Record) -> Record:
    objects = first.objects
    if first.objects is not None and second.objects is not None:
        pairs = dict.fromkeys(
            pair
            for one in (first.objects, second.objects)
            for pair in zip(one.bbox, one.category, strict=True)
        )
        objects = Objects(tuple(box for box, _ in pairs), tuple(name for _, name in pairs))
    captions = (
        first.captions
        if second.captions is None
        else tuple(dict.fromkeys((*(first.captions or ()), *second.captions)))
    )
    problem = None if objects and objects.bbox else first.problem or second.problem
    return replace(first, objects=objects, captions=captions, problem=problem)


def _finish(listing: Listing, left_out: Sequence[LeftOut], finder: Finder, src: str) -> None:
    listing.records = unique(listing.records, src)
    first = left_out[0].src
    if num_crowds := sum(of_file.num_crowds for of_file in left_out):
        listing.notes.append(f"{num_crowds} crowd regions are left out")
        listing.account.count("crowd region, left out", first, num_crowds, said=True)
    if num_blank := sum(of_file.num_blank for of_file in left_out):
        listing.notes.append(f"{num_blank} blank captions are left out")
        listing.account.count("blank caption, left out", first, num_blank, said=True)
    listing.notes += list(dict.fromkeys(note for of_file in left_out for note in of_file.notes))
    finder.finish(listing)


def _folder(src: str, images: Images) -> str:
    """Where the images lie, of the usual folders: the one that holds most of a few that are tried."""
    beside, _, file = src.rpartition("/")
    beside = beside or "."
    above = beside.rpartition("/")[0] or "."
    stem = file.rpartition(".")[0]
    # annotations/instances_train2017.json speaks of ../train2017 or ../images/train2017
    split = stem.rpartition("_")[2]
    folders = [
        beside,
        *(storage.join(base, name) for base in (beside, above) for name in ("images", stem, split)),
    ]
    folders += [storage.join(base, "images", split) for base in (beside, above)]
    step = max(1, sum(1 for _ in _plain(images)) // MAX_PROBED)
    tried = list(islice(_plain(images), 0, step * MAX_PROBED, step))
    if not tried:
        return beside
    best, num_best = "", 0
    for folder in dict.fromkeys(folders):
        slashed = [name.replace("\\", "/") for name in tried]
        num = sum(
            storage.exists(storage.join(folder, name)) or storage.exists(storage.join(folder, slash))
            for name, slash in zip(tried, slashed, strict=True)
        )
        if num > num_best:
            best, num_best = folder, num
    if best:
        return best
    tree = read_tree(beside)
    finder = Finder(tree)
    for name in tried:  # by the end of a path
        try:
            if finder.find(name).path is not None:
                return beside
        except ValueError:
            continue
    raise UserError(
        f"{src}: the first images, {shown(tried, 2)}, are in none of {', '.join(folders)}; say where the "
        "images are with --images FOLDER"
    )


def _plain(images: Images) -> Iterator[str]:
    """The names that are relative paths; of an address on the web, what follows its scheme."""
    for name in images.names():
        if name.startswith(("http:", "https:")):
            name = name.rpartition("://")[2]
        if "::" not in name and "://" not in name and not posixpath.isabs(name):
            yield name
