"""Tar shards with WebDataset naming (https://github.com/webdataset/webdataset): files of one stem make one sample.

Nothing is extracted: a tar is scanned once for where its members lie, and images are read from there by range.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass, field
from typing import Any

from cluster import storage
from cluster.errors import UserError
from pretrain.data.manifest import IMAGE_SUFFIXES
from pretrain.data.sources.records import Listing, Record

MAX_TEXT_BYTES = 2**20
LABEL_KEYS, CAPTION_KEYS = ("label", "cls", "class", "category"), ("caption", "captions", "text")


@dataclass
class _Sample:
    image: Record | None = None
    label: str | None = None
    captions: list[str] = field(default_factory=list)


def tar_records(src: str) -> Listing:
    """The images in a tar, or in all tars of a folder or glob, with labels of `.cls` and `.json` and captions of `.txt`.

    Raises:
        UserError: when there is no tar, or one is damaged or compressed.
    """
    tars = storage.find_files(src, ".tar")
    if not tars:
        raise UserError(f"no .tar files in {src}")
    listing = Listing([])
    for tar in tars:
        name = tar.url.rpartition("/")[2]
        samples: dict[str, _Sample] = {}
        with storage.open_input(tar.url) as source:
            try:
                with tarfile.open(fileobj=source, mode="r:") as members:
                    for member in members:
                        if member.isfile():
                            _take(samples, members, member, tar.url, name, listing)
            except tarfile.TarError as error:
                raise UserError(
                    f"{tar.url} is no plain tar, or it is damaged ({error}); unpack compressed tars first"
                ) from error
        for key, sample in samples.items():
            if sample.image is None:
                listing.problems.append((f"{name}/{key}", "a sample without an image"))
                continue
            record = sample.image
            listing.records.append(
                Record(
                    record.url,
                    record.path,
                    record.size_bytes,
                    record.offset,
                    label=sample.label,
                    captions=tuple(sample.captions) or None,
                )
            )
    if not listing.records:
        raise UserError(f"no images in the tars of {src} (looked for {', '.join(IMAGE_SUFFIXES)})")
    return listing


def _take(
    samples: dict[str, _Sample], members: tarfile.TarFile, member: tarfile.TarInfo, url: str, tar: str, listing: Listing
) -> None:
    """Adds one member to its sample: the stem goes to the first dot of the name, the rest is its kind."""
    folder, slash, name = member.name.rpartition("/")
    stem, _, kind = name.partition(".")
    if not stem or not kind:
        return
    sample = samples.setdefault(folder + slash + stem, _Sample())
    place = f"{tar}/{member.name}"
    if f".{kind.lower().rpartition('.')[2]}" in IMAGE_SUFFIXES:
        if sample.image is not None:
            listing.problems.append((place, f"a second image of the sample (first: {sample.image.path})"))
            return
        # the member's name only names the image in the shards: nothing is ever written to such a path
        sample.image = Record(url, place, member.size, member.offset_data)
    elif kind in ("cls", "txt", "json", "caption"):
        file = members.extractfile(member) if member.size <= MAX_TEXT_BYTES else None
        if file is None:
            listing.problems.append((place, f"{member.size} bytes of text are not read"))
            return
        text = file.read().decode("utf-8", "replace").strip()
        if kind == "cls":
            sample.label = text
        elif kind == "json":
            _take_json(sample, text, place, listing)
        elif text:
            sample.captions.append(text)


def _take_json(sample: _Sample, text: str, place: str, listing: Listing) -> None:
    try:
        tree: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        listing.problems.append((place, f"not valid JSON: {error}"))
        return
    if not isinstance(tree, dict):
        return
    label = next((tree[key] for key in LABEL_KEYS if isinstance(tree.get(key), int | str)), None)
    if label is not None and sample.label is None:
        sample.label = str(label)
    for key in CAPTION_KEYS:
        value = tree.get(key)
        sample.captions += [
            item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str) and item
        ]
