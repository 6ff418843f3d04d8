"""What the columns of a table are for, recognised by their usual names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pretrain.data.packing.sources.box_tables import BoxColumns

# what people call the columns, without regard to case; the first one found is taken
PATHS = (
    *(
        "image",
        "path",
        "file_name",
        "filename",
        "file",
        "filepath",
        "file_path",
        "image_path",
        "img_path",
        "image_file",
    ),
    *("image_name", "img", "img_name", "url", "image_url", "image_id", "imageid", "img_id", "id"),
)
LABELS = ("label", "class", "category", "label_name", "class_name", "target")
CAPTIONS = ("caption", "captions", "text", "sentence", "sentences", "description", "comment", "raw")
SEVERAL = ("labels", "tags", "keywords")  # a text there is a list, parted by commas or bars
SPLIT_COLUMNS = ("split", "subset", "partition", "set", "fold_name")
CONVERSATIONS = ("conversations", "conversation")
METADATA = (
    "metadata.jsonl",
    "metadata.csv",
    "metadata.parquet",
)  # a table in the folder it speaks of, as Hugging Face's image folders have


@dataclass(frozen=True)
class Columns:
    """Which columns to read; None looks for the usual names.
    `label` may be one of classes or of lists of them.
    """

    path: str | None = None
    label: str | None = None
    caption: str | None = None


@dataclass
class Roles:
    """The columns of a table by what they are for; empty where there is none."""

    path: str
    label: str | None = None
    labels: str | None = None
    captions: list[str] = field(default_factory=list)
    objects: str | None = None
    conversation: str | None = None
    split: str | None = None
    one_hot: list[str] = field(default_factory=list)
    boxes: BoxColumns | None = None

    def used(self) -> set[str]:
        """All that are read."""
        names = {
            self.path,
            self.label,
            self.labels,
            self.objects,
            self.conversation,
            self.split,
            *self.captions,
            *self.one_hot,
        }
        return {name for name in names if name} | set(self.boxes.all() if self.boxes else ())


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
