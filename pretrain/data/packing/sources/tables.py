"""CSV, JSON and Parquet tables that name images by path or URL, with labels, captions or boxes."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cluster import storage
from pretrain.data.packing.sources.box_tables import read_class_descriptions
from pretrain.data.packing.sources.finding import Finder, Found
from pretrain.data.packing.sources.image_record import Objects, Record
from pretrain.data.packing.sources.record_list import Distinct, Records, in_order_of
from pretrain.data.packing.sources.records import Listing, objects_of
from pretrain.data.packing.sources.rows import SUFFIXES, BadLine, Rows, json_cell, path_in
from pretrain.data.packing.sources.splits import layout_of, split_in_name, split_named
from pretrain.data.packing.sources.table_finding import tables_in, tree_of_table
from pretrain.data.packing.sources.table_roles import ONES, SEVERAL, Columns, Roles
from pretrain.data.packing.sources.texts import (
    NOTHING,
    captions_in,
    label_of,
    list_in,
    shown,
    variants,
)
from pretrain.data.packing.sources.tree import Tree, read_tree


def table_records(
    src: str,
    *,
    tree: Tree | None = None,
    columns: Columns | None = None,
    images: str | None = None,
    boxes: str | None = None,
    leave_out: str | None = None,
) -> Listing:
    """The images of a table, or of a folder with tables: `metadata.csv` or others that name its images.

    Relative paths are relative to the table's folder; URLs are taken as they are. The same path in several
    rows is one image with all their captions, and with all their boxes where columns such as xmin, ymin,
    xmax and ymax hold one. A row of JSON may have `objects` as Hugging Face's image folders have them.

    Args:
        src: the table, or a folder.
        tree: of `src`, where it is known already.
        columns: names of columns.
        images: a folder that paths may be relative to as well.
        boxes: what the four numbers of a box are, one of `BOX_MEANINGS`.
        leave_out: a folder to pass over.

    Raises:
        UserError: naming the line, when the table cannot be read, or a column is not there.
    """
    if src.lower().endswith(SUFFIXES) and not (tree is not None and tree.root == src):
        normal = src.replace("\\", "/") if storage.is_local(src) else src
        folder, _, name = normal.rpartition("/")
        tables = [_Table(src, name, columns, boxes)]
        tree = tree_of_table(tables[0].rows, tables[0].roles.path, folder or ".", name, leave_out)
    else:
        tree = tree or read_tree(src, leave_out=leave_out)
        tables = [_Table(storage.join(src, path), path, columns, boxes) for path in tables_in(src, tree)]
    finder = Finder(tree, outside=(images,) if images else ())
    told = f"table{'s'[: len(tables) > 1]} {shown([table.name for table in tables])}"
    listing = Listing(Records(tree.files), told=told, tree=tree)
    found = Distinct(listing.records, lambda record: f"{record.split or ''} {record.url}")
    layout = layout_of(tree.images) if len(tables) > 1 or tables[0].folder else None
    for table in tables:
        if layout is not None:
            table.split = layout.split_of(table.name) or split_in_name(table.name)
        table.read(finder, listing, found)
    # "\0" is in no path and comes before all that is
    listing.records = in_order_of(listing.records, lambda record: f"{record.path}\0{record.split or ''}")
    finder.finish(listing)
    _said_of_labels(listing, tables)
    listing.account.unlisted = "image not named in any row"
    return listing


class _Table:
    """One table.

    Attributes:
        name, folder: its path in the tree of the images, and the folder there.
        meaning: what the four numbers of a box are, where it was said.
        split: that of all rows, where the table's path names one.
        class_names: of codes, where boxes have codes for classes.
    """

    def __init__(self, src: str, name: str, columns: Columns | None, meaning: str | None) -> None:
        self.src, self.name, self.meaning = src, name, meaning
        self.folder = posixpath.dirname(name)
        self.split: str | None = None
        self.class_names: dict[str, str] = {}
        self.rows = Rows(src)
        self.roles = Roles.of(self.rows, columns or Columns())
        self.labels_seen: Counter[str] = Counter()
        self.nothing_seen: Counter[str] = Counter()
        self.num_unlabelled = 0

    def read(self, finder: Finder, listing: Listing, found: Distinct) -> None:
        """Adds the images of all rows to `found`, by their split and URL."""
        listing.notes += self.rows.notes
        listing.account.read.add(self.name)
        finder.bases = tuple(dict.fromkeys((self.folder, "")))
        if self.roles.boxes is not None and self.roles.boxes.is_open_images:
            self.class_names = read_class_descriptions(finder.tree)
        num_joined = num_short = 0
        for line, row in self.rows:
            location = f"{self.src}, line {line}"
            listing.account.annotations += 1
            if isinstance(row, BadLine):
                listing.problems.append((location, row.reason))
                self._leave_out(dict(zip(self.rows.columns, row.cells)), finder, listing)
                continue
            num_short += not self.rows.nested and len(row) < len(self.rows.columns)
            try:
                image, objects = self._image(row, finder)
            except ValueError as error:
                listing.problems.append((location, str(error)))
                self._leave_out(row, finder, listing)
                continue
            record = self._record(row, image, objects, location, listing)
            num_joined += self._add(record, found, location, listing)
        self._tell_of_cells(listing, num_joined, num_short)

    def _image(self, row: dict[str, Any], finder: Finder) -> tuple[Found, Objects | None]:
        """The image of a row, and its `objects`. Raises ValueError."""
        path, objects = self.roles.path, self.roles.objects
        image = finder.find(path_in(row.get(path)), f"column {path!r}", under=self.folder)
        return image, objects_of(json_cell(row.get(objects)), self.meaning or "xywh") if objects else None

    def _record(
        self, row: dict[str, Any], image: Found, objects: Objects | None, location: str, listing: Listing
    ) -> Record:
        """What a row says of its image."""
        roles, frame, problem = self.roles, None, None
        label, labels = (None, None) if roles.boxes is not None else self._labels(row)
        if roles.boxes is not None:
            try:
                objects, frame = roles.boxes.read(row, self.meaning, self.class_names)
            except ValueError as error:
                objects, problem = Objects((), ()), str(error)
                listing.problems.append((location, problem))
        return Record(
            image.url,
            image.path if self.folder and image.path else image.name,
            label=label,
            labels=labels,
            objects=objects,
            captions=self._captions(row, location, listing),
            relative_boxes=bool(objects) and self._relative(),
            frame=frame,
            split=self.split if roles.split is None else split_named(str(row.get(roles.split))),
            problem=problem,
        )

    def _add(self, record: Record, found: Distinct, location: str, listing: Listing) -> bool:
        """Adds a row's image, or joins it with that of rows above; whether there were such."""
        number = found.add(record)
        if number is None:
            return False
        joined = self._joined(found.records[number], record)
        if joined is None:
            what = f"{record.path} has other labels or objects in a row above"
            listing.problems.append((location, what))
        else:
            found.records[number] = joined
        return True

    def _tell_of_cells(self, listing: Listing, num_joined: int, num_short: int) -> None:
        """Says which columns and cells were not read."""
        account = listing.account
        unused = [name for name in self.rows.columns if name not in self.roles.used()]
        for name in unused:
            account.count("column that is not read", f"{self.src}: {name}", said=True)
        if unused:
            listing.notes.append(f"columns of {self.src} that are not read: {shown(unused, 12)}")
        account.count("row joined with an image above", self.src, num_joined, said=True)
        if num_short:
            account.count("row with fewer cells than the header", self.src, num_short, said=True)
            listing.notes.append(
                f"{num_short} rows of {self.src} have fewer cells than the header; the missing ones are "
                "empty"
            )

    def _leave_out(self, row: dict[str, Any], finder: Finder, listing: Listing) -> None:
        """Says of the image of a row that cannot be read why it is not packed."""
        try:
            path = finder.find(path_in(row.get(self.roles.path)), under=self.folder).path
        except ValueError:
            return
        if path is not None:
            listing.account.left[path] = "image whose row was set aside"

    def _relative(self) -> bool:
        if self.meaning is not None:
            return self.meaning == "fractions"
        return self.roles.boxes is not None and self.roles.boxes.is_open_images

    def _joined(self, earlier: Record, record: Record) -> Record | None:
        """Both rows as one image; None where they contradict each other."""
        if self.roles.boxes is not None and earlier.objects is not None and record.objects is not None:
            pairs = dict.fromkeys(
                pair
                for one in (earlier.objects, record.objects)
                for pair in zip(one.bbox, one.category, strict=True)
            )
            boxes, names = tuple(box for box, _ in pairs), tuple(name for _, name in pairs)
            problem = None if boxes else earlier.problem or record.problem
            frame = earlier.frame or record.frame
            if earlier.frame and record.frame and earlier.frame != record.frame:
                problem = f"its rows name several sizes: {earlier.frame}, {record.frame}"
            return replace(earlier, objects=Objects(boxes, names), problem=problem, frame=frame)
        if (earlier.label, earlier.labels, earlier.objects) != (record.label, record.labels, record.objects):
            return None
        if record.captions is None:
            return earlier
        return replace(earlier, captions=tuple(dict.fromkeys((*(earlier.captions or ()), *record.captions))))

    def _labels(self, row: dict[str, Any]) -> tuple[str | None, tuple[str, ...] | None]:
        """(label, labels) of a row: what its columns of these hold."""
        roles = self.roles
        label: str | None = None
        labels: tuple[str, ...] | None = None
        if roles.one_hot:
            ones = [name for name in roles.one_hot if str(row.get(name)).strip() in ONES]
            label, labels = (ones[0], None) if roles.one_each else (None, tuple(ones))
        if roles.label is not None:
            value = row.get(roles.label)
            if roles.several or (roles.label in SEVERAL and isinstance(value, str)):
                labels = self._several(value, roles.label)
            else:
                label = label_of(value)
                if label is None:
                    self.num_unlabelled += 1
                    if isinstance(value, str) and value.strip() in NOTHING:
                        self.nothing_seen[value.strip()] += 1
        if roles.labels is not None:
            labels = self._several(row.get(roles.labels), roles.labels)
        self.labels_seen.update([label] if label is not None else labels or ())
        return label, labels

    def _several(self, value: Any, column: str) -> tuple[str, ...]:
        if isinstance(value, list):
            words = value
        elif isinstance(value, str) and column in self.roles.lists_in:
            words = list_in(value) or []
        elif column == self.roles.label and column.casefold() not in SEVERAL:
            words = [] if isinstance(value, dict) else [value]
        else:
            words = str("" if value is None else value).replace("|", ",").split(",")
        return tuple(dict.fromkeys(name for word in words if (name := label_of(word)) is not None))

    def _captions(self, row: dict[str, Any], location: str, listing: Listing) -> tuple[str, ...] | None:
        roles = self.roles
        if roles.conversation is not None:
            return _answers(row.get(roles.conversation), location, listing)
        if not roles.captions:
            return None
        texts: list[str] = []
        for name in roles.captions:
            value = row.get(name)
            if isinstance(value, str) and name in roles.lists_in:
                value = list_in(value)
            elif isinstance(value, str):
                value = json_cell(value)
            found, bad = captions_in(value)
            if bad:
                listing.problems.append(
                    (location, f"column {name!r} holds {str(value)[:60]!r}, which is not a caption")
                )
            elif not found and name in row:
                listing.account.count("blank caption, left out", location)
            texts += found
        return tuple(dict.fromkeys(texts))


def _answers(value: Any, location: str, listing: Listing) -> tuple[str, ...]:
    """The caption in a conversation of one question and answer, as LLaVA's pretraining lists have them."""
    turns = value if isinstance(value, list) else []
    answers = [
        turn.get("value")
        for turn in turns
        if isinstance(turn, dict) and turn.get("from") in ("gpt", "assistant")
    ]
    if len(answers) == 1 and isinstance(answers[0], str) and answers[0].strip():
        return tuple(captions_in(answers[0])[0])
    listing.account.count("conversation of several turns, whose texts are not read", location, said=True)
    note = "conversations of several turns are not captions and are not read"
    if note not in listing.notes:
        listing.notes.append(note)
    return ()


def _said_of_labels(listing: Listing, tables: Sequence[_Table]) -> None:
    counts: Counter[str] = Counter()
    nothing: Counter[str] = Counter()
    for table in tables:
        counts.update(table.labels_seen)
        nothing.update(table.nothing_seen)
    listing.notes += variants(counts)
    if nothing:
        told = ", ".join(f"{word!r} {num}" for word, num in sorted(nothing.items()))
        listing.notes.append(f"labels that mean `none` were read as no label: {told}")
    unlabelled = sum(table.num_unlabelled for table in tables)
    if unlabelled and counts:
        listing.notes.append(f"{unlabelled} rows have no label")
        listing.account.count("row without a label", tables[0].src, unlabelled, said=True)
    for table in tables:
        if table.roles.one_hot:
            listing.notes.append(f"columns of 0 and 1 are read as classes: {shown(table.roles.one_hot, 20)}")
        if table.roles.several:
            how = "as text, read as several labels an image"
            if table.roles.has_real_lists:
                how = "in some rows: all are read as lists"
            listing.notes.append(f"column {table.roles.label!r} of {table.src} holds lists {how}")
