"""Data sets of torchvision by name: `torchvision:CIFAR10`, `torchvision:OxfordIIITPet`, ..."""

from __future__ import annotations

import inspect
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image

from cluster.errors import UserError, choose
from pretrain.data.sources.records import Listing, Record

PREFIX = "torchvision:"


@dataclass(frozen=True, slots=True)
class _Item(Record):
    """A record whose image the data set gives as pixels; they are stored as PNG, without loss."""

    dataset: Any = None
    index: int = 0

    def read(self) -> bytes:
        """The image as PNG."""
        image, _ = self.dataset[self.index]
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()


def torchvision_records(src: str, *, root: str = "data", download: bool = False) -> Listing:
    """The images and class names of a classification data set of torchvision, all of its splits' training part.

    Args:
        src: `torchvision:NAME`, or `torchvision:NAME:SPLIT` for another split (`train`, `test`, `val`, ...).
        root: the folder where torchvision keeps it.
        download: fetch it when it is not there.

    Raises:
        UserError: for an unknown name, a set that is not there, or one whose items are no (image, class).
    """
    import torchvision

    name, _, split = src.removeprefix(PREFIX).partition(":")
    known = [key for key in torchvision.datasets.__all__ if inspect.isclass(getattr(torchvision.datasets, key))]
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
        raise UserError(f"torchvision's {name} cannot be opened: {str(error).splitlines()[0]}{hint}") from error
    if not (
        isinstance(first, tuple) and len(first) == 2 and isinstance(first[0], Image.Image) and isinstance(first[1], int)
    ):
        raise UserError(
            f"torchvision's {name} does not give (image, class); only such data sets can be imported by name"
        )
    names = getattr(dataset, "classes", None)
    labels = _labels(dataset)
    digits = len(str(len(dataset)))
    records: list[Record] = [
        _Item(
            url=src,
            path=f"{index:0{digits}d}.png",
            label=names[label] if isinstance(names, list) and 0 <= label < len(names) else str(label),
            dataset=dataset,
            index=index,
        )
        for index, label in enumerate(labels)
    ]
    return Listing(records)


def _labels(dataset: Any) -> list[int]:
    for name in ("targets", "labels", "_labels"):
        values = getattr(dataset, name, None)
        if values is not None and len(values) == len(dataset):
            return [int(value) for value in values]
    return [int(dataset[index][1]) for index in range(len(dataset))]
