"""What the columns of a table are for, recognised by their usual names and by what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cluster.errors import UserError, nearest
from pretrain.data.packing.sources.box_tables import BoxColumns, find_box_columns
from pretrain.data.packing.sources.rows import Rows
from pretrain.data.packing.sources.splits import split_named
from pretrain.data.packing.sources.texts import is_nothing, list_in

# what people call the columns, without regard to case; the first one found is taken
PATHS = (
    *("image", "path", "file_name", "filename", "file", "filepath", "file_path", "image_path", "img_path"),
    *("image_file", "image_name", "img", "img_name", "url", "image_url", "image_id", "imageid", "img_id"),
    "id",
)
LABELS = ("label", "class", "category", "label_name", "class_name", "target")
CAPTIONS = ("caption", "captions", "text", "sentence", "sentences", "description", "comment", "raw")
SEVERAL = ("labels", "tags", "keywords")  # a text there is a list, parted by commas or bars
SPLIT_COLUMNS = ("split", "subset", "partition", "set", "fold_name")
CONVERSATIONS = ("conversations", "conversation")
# a table in the folder it speaks of, as Hugging Face's image folders have
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
ONES = ("1", "1.0")
ZEROS = ("0", "0.0")


@dataclass(frozen=True)
class Columns:
    """Which columns to read; None looks for the usual names. `label` may hold classes or lists of them."""

    path: str | None = None
    label: str | None = None
    caption: str | None = None


@dataclass
class Roles:
    """The columns of a table by what they are for; empty where there is none.

    Attributes:
        lists_in: those whose texts are lists.
        one_hot: classes, with 1 where an image is of it; `one_each` where each row has a single 1.
        has_real_lists: whether `label` holds lists, and not only texts that are lists.
    """

    path: str
    label: str | None = None
    labels: str | None = None
    captions: list[str] = field(default_factory=list)
    objects: str | None = None
    conversation: str | None = None
    split: str | None = None
    one_hot: list[str] = field(default_factory=list)
    boxes: BoxColumns | None = None
    lists_in: set[str] = field(default_factory=set)
    one_each: bool = True
    has_real_lists: bool = False

    @classmethod
    def of(cls, rows: Rows, asked: Columns) -> Roles:
        """Those of a table. Raises UserError where paths or a column that was asked for are missing."""
        known = rows.columns
        path = _asked(rows, "--path-column", asked.path) or usual(PATHS, known)
        if path is None:
            raise UserError(
                f"{rows.src} has no column of paths (looked for {', '.join(PATHS[:11])}; columns there: "
                f"{', '.join(known)}); name it with --path-column"
            )
        label = _asked(rows, "--label-column", asked.label) or usual(LABELS, known)
        caption = _asked(rows, "--caption-column", asked.caption)
        captions = [caption] if caption else captions_columns(known, {path})
        roles = cls(
            path,
            label=label,
            labels=None if asked.label is not None else usual(SEVERAL, known),
            captions=captions,
            objects=usual(("objects",), known),
            conversation=None if captions else usual(CONVERSATIONS, known),
            split=usual(SPLIT_COLUMNS, known),
            boxes=find_box_columns(known),
        )
        roles._look(rows)
        return roles

    def _look(self, rows: Rows) -> None:
        """Looks at all cells once: which columns hold lists as text, which 0 and 1, are splits named."""
        holds_lists = {name: True for name in (self.label, self.labels, *self.captions) if name}
        seen_any: set[str] = set()
        has_classes = self.label or self.labels or self.boxes or rows.nested
        flags = [] if has_classes else [name for name in rows.columns if name not in self.used()]
        has_rows = False
        for _, row in rows.good():
            has_rows = True
            for name, holds in holds_lists.items():
                value = row.get(name)
                if isinstance(value, list) and name == self.label:
                    self.has_real_lists = True
                if holds and not is_nothing(value):
                    seen_any.add(name)
                    holds_lists[name] = isinstance(value, str) and list_in(value) is not None
            flags = [name for name in flags if str(row.get(name, "")).strip() in (*ONES, *ZEROS)]
            self.one_each &= sum(str(row.get(name)).strip() in ONES for name in flags) == 1
            if self.split and split_named(str(row.get(self.split) or "")) is None:
                self.split = None
        self.lists_in = {name for name in seen_any if holds_lists[name]}
        self.one_hot = flags if len(flags) >= 2 and has_rows else []

    @property
    def several(self) -> bool:
        """Whether `label` holds lists: a single one makes it a column of lists."""
        return bool(self.label) and (self.has_real_lists or self.label in self.lists_in)

    def used(self) -> set[str]:
        """All that are read."""
        names = {self.path, self.label, self.labels, self.objects, self.conversation, self.split}
        return {name for name in names if name}.union(
            self.captions, self.one_hot, self.boxes.all() if self.boxes else ()
        )


def _asked(rows: Rows, option: str, name: str | None) -> str | None:
    if name is None or name in rows.columns:
        return name
    found = usual([name.strip().casefold()], rows.columns)
    if found is None:
        raise UserError(
            f"{rows.src} has no column {name!r}, as {option} says{nearest(name, rows.columns)} (columns "
            f"there: {', '.join(rows.columns)})"
        )
    return found


def captions_columns(known: Sequence[str], taken: Iterable[str]) -> list[str]:
    """The column of captions, or several with numbers behind (caption_1, caption_2, ...)."""
    first = usual(CAPTIONS, [name for name in known if name not in taken])
    if first is not None:
        return [first]
    numbered = [name for name in known if name.casefold().rstrip("0123456789").rstrip("_- ") in CAPTIONS]
    return [name for name in numbered if name not in taken]


def usual(names: Iterable[str], known: Iterable[str]) -> str | None:
    folded: dict[str, str] = {}
    for name in known:
        folded.setdefault(str(name).strip().casefold(), name)
    return next((folded[name] for name in names if name in folded), None)
