"""What is known of one image to pack; nothing of it is read yet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from cluster import storage
from cluster.storage.retrying import DEFAULT_PATIENCE, Patience

# of images anywhere in the web many are gone for good;
# two minutes for each dead host would make weeks of a long list
PATIENCE_WITH_THE_WEB = Patience(attempts=4, total_seconds=15)


class Holder(Protocol):
    """Holds many images, which are no files of their own."""

    def read(self, place: int, size_bytes: int) -> bytes:
        """The encoded image at a place. Raises UserError when it cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of an image: boxes (x, y, width, height) in pixels, and a class name for each."""

    bbox: tuple[tuple[float, float, float, float], ...]
    category: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One image to pack.

    Attributes:
        url: the file that holds its bytes.
        path: names it in the shards; unique within a source.
        size_bytes: of the encoded image where the listing tells it, else 0.
        label, labels, objects, captions: what is known of it; None where the source does not say such
            things.
        relative_boxes: the boxes are fractions of the image's sides in place of pixels.
        frame: (width, height) of the image that the boxes were drawn on, as the source records it; None
            where it does not.
        split: `train`, `validation` or `test` where the source says so.
        problem: why it is not packed, where that is known beforehand: its only boxes could not be read, so
            that it would look like an image without any.
        holder, place: what the image is a part of, and where, if it is no file of its own.
    """

    url: str
    path: str
    size_bytes: int = 0
    label: str | None = None
    labels: tuple[str, ...] | None = None
    objects: Objects | None = None
    captions: tuple[str, ...] | None = None
    relative_boxes: bool = False
    frame: tuple[float, float] | None = None
    split: str | None = None
    problem: str | None = None
    holder: Holder | None = None
    place: int = 0

    def read(self) -> bytes:
        """The encoded image. Raises UserError, or ValueError for a URL that is none,
        when it cannot be read.
        """
        if self.holder is not None:
            return self.holder.read(self.place, self.size_bytes)
        web = self.url.startswith(("http://", "https://"))
        return storage.read_bytes(
            self.url, patience=PATIENCE_WITH_THE_WEB if web else DEFAULT_PATIENCE, from_data=True
        )


def as_text(record: Record) -> Record:
    """The record with `?` for what UTF-8 cannot hold:
    file names in other encodings, halves of characters in JSON.
    """
    texts = (record.path, record.label or "", *(record.labels or ()), *(record.captions or ()))
    try:
        "".join((*texts, *(record.objects.category if record.objects else ()))).encode()
    except UnicodeEncodeError:
        objects = record.objects
        return replace(  # `url` stays: it is what opens the file
            record,
            path=_text(record.path),
            label=None if record.label is None else _text(record.label),
            labels=None if record.labels is None else tuple(map(_text, record.labels)),
            captions=None if record.captions is None else tuple(map(_text, record.captions)),
            objects=None if objects is None else Objects(objects.bbox, tuple(map(_text, objects.category))),
        )
    return record


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
