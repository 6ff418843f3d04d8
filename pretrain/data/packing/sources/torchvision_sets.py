"""Data sets of torchvision by name: `torchvision:CIFAR10`, `torchvision:OxfordIIITPet`, ..."""

from __future__ import annotations

import inspect
import io
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cluster import storage
from cluster.errors import UserError, choose
from cluster.storage.retrying import in_words
from pretrain.data.packing.sources.image_record import Record
from pretrain.data.packing.sources.records import Listing
from pretrain.data.reading.manifest import IMAGE_SUFFIXES

PREFIX = "torchvision:"
PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


@dataclass(frozen=True)
class _Items:
    """Holds images that the data set gives as pixels; these are stored as PNG, without loss."""

    dataset: Any
    url: str

    def read(self, place: int, size_bytes: int) -> bytes:
        """The pixels of an item as PNG."""
        try:
            image, _ = self.dataset[place]
            buffer = io.BytesIO()
            (image if image.mode in PNG_MODES else image.convert("RGB")).save(buffer, "PNG")
        except (RuntimeError, OSError, ValueError, SyntaxError, LookupError) as error:
            raise UserError(f"item {place} of {self.url}: {in_words(error)}") from error
        return buffer.getvalue()


def torchvision_records(src: str, *, root: str = "data", download: bool = False) -> Listing:
    """The images and class names of a classification data set of torchvision, of its training split.

    Args:
        src: `torchvision:NAME`, or `torchvision:NAME:SPLIT` for another split (`train`, `test`, `val`, ...).
        root: the folder where torchvision keeps it.
        download: fetch it when it is not there.

    Raises:
        UserError: for an unknown name, a set that is not there, or one whose items are no (image, class).
    """
    import torchvision

    name, _, split = src.removeprefix(PREFIX).partition(":")
    known = [
        key for key in torchvision.datasets.__all__ if inspect.isclass(getattr(torchvision.datasets, key))
    ]
    kind = getattr(torchvision.datasets, choose("torchvision data set", name, known))
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {}
    if "root" in parameters:
        options["root"] = root
    if "download" in parameters:
        options["download"] = download
    if split and "split" in parameters:
        options["split"] = split
    elif split and "train" in parameters:
        options["train"] = split == "train"
    elif split:
        raise UserError(f"torchvision's {name} has no splits, but {split!r} was asked for")
    try:
        dataset = kind(**options)
        first = dataset[0]
    except (RuntimeError, OSError, ValueError, TypeError, ImportError, LookupError) as error:
        hint = "" if download else "; add --download to fetch it, or say where it is with --root"
        raise UserError(f"torchvision's {name} cannot be opened: {in_words(error)}{hint}") from error
    is_pair = isinstance(first, tuple) and len(first) == 2
    if not (is_pair and isinstance(first[0], Image.Image) and isinstance(first[1], int)):
        raise UserError(
            f"torchvision's {name} does not give (image, class); only such data sets can be imported by name"
        )
    names = getattr(dataset, "classes", None)
    labels = _labels(dataset)
    digits = len(str(len(dataset)))
    files = _files(dataset)
    listing, holder = Listing(), _Items(dataset, src)
    for index, number in enumerate(labels):
        label = names[number] if isinstance(names, list) and 0 <= number < len(names) else str(number)
        # ImageNet has several words for a class
        label = " / ".join(label) if isinstance(label, tuple) else str(label)
        stem = f"{index:0{digits}d}"
        if files is None:
            listing.records.append(Record(src, f"{stem}.png", label=label, holder=holder, place=index))
        else:
            listing.records.append(
                Record(url=files[index], path=stem + posixpath.splitext(files[index])[1], label=label)
            )
    return listing


def _files(dataset: Any) -> list[str] | None:
    """The image files in the order of the items, for sets that keep them: stored as they are, they need no
    PNG five times their size."""
    for name in ("_image_files", "_images", "_samples", "samples"):
        entries = getattr(dataset, name, None)
        if isinstance(entries, list) and entries and len(entries) == len(dataset):
            paths = [entry[0] if isinstance(entry, tuple) else entry for entry in entries]
            if all(
                isinstance(path, str | Path) and str(path).lower().endswith(IMAGE_SUFFIXES) for path in paths
            ):
                return [storage.absolute(str(path)) for path in paths]
    return None


def _labels(dataset: Any) -> list[int]:
    for name in ("targets", "labels", "_labels", "_samples"):
        values = getattr(dataset, name, None)
        if values is not None and len(values) == len(dataset):
            numbers = [value[-1] if isinstance(value, tuple) else value for value in values]
            if all(isinstance(number, int) or getattr(number, "ndim", 1) == 0 for number in numbers):
                return [int(number) for number in numbers]
    return [int(dataset[index][1]) for index in range(len(dataset))]
