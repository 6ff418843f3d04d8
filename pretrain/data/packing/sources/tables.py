"""CSV, JSON and Parquet tables that name images by path or URL, with labels,
captions or boxes in other columns.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cluster import storage
from cluster.errors import UserError, nearest
from pretrain.data.packing.sources.box_tables import find_box_columns, read_class_descriptions
from pretrain.data.packing.sources.finding import Finder
from pretrain.data.packing.sources.image_record import Objects, Record
from pretrain.data.packing.sources.record_list import Distinct, Records, in_order_of
from pretrain.data.packing.sources.records import Listing, objects_of
from pretrain.data.packing.sources.rows import SUFFIXES, BadLine, Rows, json_cell
from pretrain.data.packing.sources.splits import layout_of, split_in_name, split_named
from pretrain.data.packing.sources.table_finding import tables_in, tree_of_table
from pretrain.data.packing.sources.table_roles import (
    CONVERSATIONS,
    LABELS,
    PATHS,
    SEVERAL,
    SPLIT_COLUMNS,
    Columns,
    Roles,
    captions_columns,
    usual,
)
from pretrain.data.packing.sources.texts import (
    NOTHING,
    captions_in,
    is_nothing,
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
    """The images of a table, or of a folder with tables:
    `metadata.csv`, .jsonl or .parquet, or others that name its images.

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
        folder, _, name = (
            src.replace("\\", "/").rpartition("/") if storage.is_local(src) else src.rpartition("/")
        )
        table = _Table(src, columns, boxes)
        tree = tree_of_table(table.rows, table.roles.path, folder or ".", name, leave_out)
        tables = [(name, table)]
    else:
        tree = tree or read_tree(src, leave_out=leave_out)
        tables = [(path, _Table(storage.join(src, path), columns, boxes)) for path in tables_in(src, tree)]
    finder = Finder(tree, outside=(images,) if images else ())
    told = f"table{'s'[: len(tables) > 1]} {shown([name for name, _ in tables])}"
    listing = Listing(Records(tree.files), told=told, tree=tree)
    found = Distinct(listing.records, lambda record: f"{record.split or ''} {record.url}")
    layout = layout_of(tree.images) if len(tables) > 1 or "/" in tables[0][0] else None
    for name, table in tables:
        split = None if layout is None else layout.split_of(name) or split_in_name(name)
        folder = posixpath.dirname(name)
        finder.bases = tuple(dict.fromkeys((folder, "")))
        listing.account.read.add(name)
        table.read(finder, listing, found, split=split, by_path="/" in name)
    # "\0" is in no path and comes before all that is
    listing.records = in_order_of(listing.records, lambda record: f"{record.path}\0{record.split or ''}")
    finder.finish(listing)
    _said_of_labels(listing, [table for _, table in tables])
    listing.account.unlisted = "image not named in any row"
    return listing


class _Table:
    """One table, with what its columns are for."""

    def __init__(self, src: str, columns: Columns | None, boxes: str | None) -> None:
        self.src, self.meaning = src, boxes
        self.rows = Rows(src)
        asked = columns or Columns()
        known = self.rows.columns
        path = self._asked("--path-column", asked.path, known) or usual(PATHS, known)
        if path is None:
            raise UserError(
                f"{src} has no column of paths (looked for {', '.join(PATHS[:11])}; columns there: "
                f"{', '.join(known)}); name it "
                "with --path-column"
            )
        self.roles = Roles(path)
        roles = self.roles
        roles.boxes = find_box_columns(known)
        roles.label = self._asked("--label-column", asked.label, known) or usual(LABELS, known)
        roles.labels = None if asked.label is not None else usual(SEVERAL, known)
        caption = self._asked("--caption-column", asked.caption, known)
        roles.captions = [caption] if caption else captions_columns(known, {path})
        roles.objects = usual(("objects",), known)
        roles.conversation = None if roles.captions else usual(CONVERSATIONS, known)
        roles.split = usual(SPLIT_COLUMNS, known)
        self._look()
        self.labels_seen: Counter[str] = Counter()
        self.nothing_seen: Counter[str] = Counter()
        self.num_unlabelled = 0

    def _asked(self, option: str, asked: str | None, known: Sequence[str]) -> str | None:
        if asked is None:
            return None
        found = (
            asked
            if asked in known
            else next((name for name in known if name.casefold() == asked.strip().casefold()), None)
        )
        if found is None:
            raise UserError(
                f"{self.src} has no column {asked!r}, as {option} says{nearest(asked, known)} (columns "
                f"there: {', '.join(known)})"
            )
        return found

    def _look(self) -> None:
        """Looks once through all cells: which columns hold lists as text, which only 0 and 1,
        and whether splits are named.
        """
        roles = self.roles
        watched = [name for name in (roles.label, roles.labels, *roles.captions) if name]
        holds_lists = dict.fromkeys(watched, True)
        seen_any = dict.fromkeys(watched, False)
        self.has_real_lists = False
        rest = [name for name in self.rows.columns if name not in roles.used()]
        flags = dict.fromkeys(
            [] if roles.label or roles.labels or roles.boxes or self.rows.nested else rest, True
        )
        num_rows, one_each, splits_named = 0, True, roles.split is not None
        for _, row in self.rows.good():
            num_rows += 1
            for name in watched:
                value = row.get(name)
                if isinstance(value, list) and name == roles.label:
                    self.has_real_lists = True
                if holds_lists[name] and not is_nothing(value):
                    seen_any[name] = True
                    holds_lists[name] = isinstance(value, str) and list_in(value) is not None
            for name in list(flags):
                if str(row.get(name, "")).strip() not in ("0", "1", "0.0", "1.0"):
                    del flags[name]
            num_ones = sum(str(row.get(name)).strip() in ("1", "1.0") for name in flags)
            one_each = one_each and num_ones == 1
            if splits_named and split_named(str(row.get(roles.split or "") or "")) is None:
                splits_named = False
        self.lists_in = {name for name, holds in holds_lists.items() if holds and seen_any[name]}
        if not splits_named:
            roles.split = None
        if len(flags) >= 2 and num_rows:
            roles.one_hot = list(flags)
        self.one_each = one_each
        # a single list in the column of labels makes it one of lists
        self.several = bool(roles.label) and (self.has_real_lists or roles.label in self.lists_in)

    def read(
        self,
        finder: Finder,
        listing: Listing,
        found: Distinct,
        *,
        split: str | None,
        by_path: bool,
    ) -> None:
        """Adds the images of all rows to `found`."""
        roles, account = self.roles, listing.account
        listing.notes += self.rows.notes
        under = finder.bases[0] if finder.bases else ""
        class_names = (
            read_class_descriptions(finder.tree) if roles.boxes and roles.boxes.is_open_images else {}
        )
        num_rows = num_repeated = num_short = 0
        for line, row in self.rows:
            location = f"{self.src}, line {line}"
            num_rows += 1
            account.annotations += 1
            if isinstance(row, BadLine):
                listing.problems.append((location, row.reason))
                self._leave_out(row.cells, finder, listing, under)
                continue
            num_short += not self.rows.nested and len(row) < len(self.rows.columns)
            bad = None
            try:
                value = row.get(roles.path)
                if isinstance(value, dict):  # Hugging Face's {"path": ..., "bytes": null}
                    value = value.get("path")
                image = finder.find(value, f"column {roles.path!r}", under=under)
                objects = (
                    objects_of(json_cell(row.get(roles.objects)), self.meaning or "xywh")
                    if roles.objects
                    else None
                )
            except ValueError as error:
                listing.problems.append((location, str(error)))
                self._leave_out([row.get(name) for name in self.rows.columns], finder, listing, under)
                continue
            frame = None
            if roles.boxes is not None:
                try:
                    objects, frame = roles.boxes.read(row, self.meaning, class_names)
                except ValueError as error:
                    listing.problems.append((location, str(error)))
                    objects, bad = Objects((), ()), str(error)
            label, labels = (None, None) if roles.boxes is not None else self._labels(row)
            captions = self._captions(row, location, listing)
            mine = split
            if roles.split is not None:
                mine = split_named(str(row.get(roles.split)))
            record = Record(
                image.url,
                image.path if by_path and image.path else image.name,
                label=label,
                labels=labels,
                objects=objects,
                captions=captions,
                relative_boxes=bool(objects) and self._relative(),
                frame=frame,
                split=mine,
                problem=bad,
            )
            number = found.add(record)
            if number is None:
                continue
            num_repeated += 1
            joined = self._joined(found.records[number], record)
            if joined is None:
                listing.problems.append(
                    (location, f"{record.path} has other labels or objects in a row above")
                )
            else:
                found.records[number] = joined
        unused = [name for name in self.rows.columns if name not in roles.used()]
        for name in unused:
            account.count("column that is not read", f"{self.src}: {name}", said=True)
        if unused:
            listing.notes.append(f"columns of {self.src} that are not read: {shown(unused, 12)}")
        account.count("row joined with an image above", self.src, num_repeated, said=True)
        if num_short:
            account.count("row with fewer cells than the header", self.src, num_short, said=True)
            listing.notes.append(
                f"{num_short} rows of {self.src} have fewer cells than the header; the missing ones are "
                "empty"
            )

    def _leave_out(self, cells: Sequence[Any], finder: Finder, listing: Listing, under: str) -> None:
        """Says of the image of a row that cannot be read why it is not packed."""
        index = self.rows.columns.index(self.roles.path)
        value = cells[index] if index < len(cells) else None
        try:
            path = finder.find(value.get("path") if isinstance(value, dict) else value, under=under).path
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
            ones = [name for name in roles.one_hot if str(row.get(name)).strip() in ("1", "1.0")]
            label, labels = (ones[0], None) if self.one_each else (None, tuple(ones))
        if roles.label is not None:
            value = row.get(roles.label)
            if self.several or (roles.label in SEVERAL and isinstance(value, str)):
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
        elif isinstance(value, str) and column in self.lists_in:
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
            if isinstance(value, str) and name in self.lists_in:
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
    listing.notes[:] = dict.fromkeys(
        [*listing.notes, "conversations of several turns are not captions and are not read"]
    )
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
        if table.several and not table.has_real_lists:
            listing.notes.append(
                f"column {table.roles.label!r} of {table.src} holds lists as text, read as several labels "
                "an image"
            )
        elif table.several:
            listing.notes.append(
                f"column {table.roles.label!r} of {table.src} holds lists in some rows: all are read as "
                "lists"
            )
