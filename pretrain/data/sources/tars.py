"""Tar shards with WebDataset naming (https://github.com/webdataset/webdataset): files of one stem make one sample.

Nothing is extracted: a tar is scanned once for where its members lie, and images are read from there by range.
"""

from __future__ import annotations

import json
import struct
import tarfile
from dataclasses import dataclass, field
from typing import Any

from cluster import storage
from cluster.errors import UserError
from pretrain.data.manifest import IMAGE_SUFFIXES
from pretrain.data.sources.records import REMOTE_THREADS, Listing, Objects, Record, in_order, objects_of

MAX_TEXT_BYTES = 2**20
LABEL_KEYS, LABELS_KEYS, CAPTION_KEYS = (
    ("label", "cls", "class", "category"),
    ("labels", "tags"),
    ("caption", "captions", "text"),
)
# what the standard library raises for headers that make no sense, besides its own errors
TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, EOFError, LookupError, struct.error)


@dataclass(frozen=True, slots=True)
class _Member(Record):
    """A record whose image is a part of a tar."""

    tar: storage.FileInfo | None = None
    offset: int = 0

    def read(self) -> bytes:
        """The bytes of the member."""
        assert self.tar is not None
        return bytes(storage.read_range(self.tar, self.offset, self.offset + self.size_bytes))


@dataclass
class _Sample:
    """What the members of one stem say."""

    image: tarfile.TarInfo | None = None
    label: str | None = None
    labels: tuple[str, ...] | None = None
    objects: Objects | None = None
    captions: list[str] = field(default_factory=list)


def tar_records(src: str) -> Listing:
    """The images in a tar, or in all tars of a folder or glob, with what lies beside them under the same stem.

    `.cls` is a label, `.txt` and `.caption` are captions, and `.json` may have a label, labels, captions and objects.

    Raises:
        UserError: when there is no tar, or one is damaged or compressed.
    """
    tars = storage.find_files(src, ".tar")
    if not tars:
        raise UserError(f"no .tar files in {src}; compressed tars must be unpacked first")
    # named by their folders too, for every split may have its 000.tar
    shared = len(tars[0].url.rpartition("/")[0]) + 1
    while any(tar.url[:shared] != tars[0].url[:shared] for tar in tars):
        shared = tars[0].url.rfind("/", 0, shared - 1) + 1
    listing = Listing([])
    num_threads = 2 if storage.is_local(tars[0].url) else REMOTE_THREADS
    for records, problems in in_order(lambda tar: _scan(tar, tar.url[shared:]), tars, num_threads):
        listing.records += records
        listing.problems += problems
    if not listing.records:
        raise UserError(f"no images in the tars of {src} (looked for {', '.join(IMAGE_SUFFIXES)})")
    return listing


def _scan(tar: storage.FileInfo, name: str) -> tuple[list[Record], list[tuple[str, str]]]:
    """The records of one tar, and its problems."""
    samples: dict[str, _Sample] = {}
    problems: list[tuple[str, str]] = []
    with storage.open_input(tar.url) as source:
        try:
            with tarfile.open(fileobj=source, mode="r:") as members:
                for member in members:
                    if member.isfile():
                        reason = _take(samples, members, member, tar.size_bytes)
                        problems += [(f"{name}/{member.name}", reason)] if reason else []
        except TAR_ERRORS as error:
            raise UserError(
                f"{tar.url} is no plain tar, or it is damaged ({error}); unpack compressed tars first"
            ) from error
    records: list[Record] = []
    for key, sample in samples.items():
        if sample.image is None:
            problems.append((f"{name}/{key}", "a sample without an image"))
            continue
        records.append(
            _Member(
                url=tar.url,
                # the member's name only names the image in the shards: nothing is ever written to such a path
                path=f"{name}/{sample.image.name}",
                size_bytes=sample.image.size,
                label=sample.label,
                labels=sample.labels,
                objects=sample.objects,
                captions=tuple(sample.captions) or None,
                tar=tar,
                offset=sample.image.offset_data,
            )
        )
    return records, problems


def _take(samples: dict[str, _Sample], members: tarfile.TarFile, member: tarfile.TarInfo, tar_bytes: int) -> str | None:
    """Adds one member to its sample, or says why not. The stem goes to the first dot of the name, the rest is its kind."""
    folder, slash, name = member.name.rpartition("/")
    stem, _, kind = name.partition(".")
    if not stem or not kind:
        return None
    kind = kind.lower()
    sample = samples.setdefault(folder + slash + stem, _Sample())
    if f".{kind.rpartition('.')[2]}" in IMAGE_SUFFIXES:
        if member.issparse() or member.size < 0 or member.offset_data + member.size > tar_bytes:
            return "sparse, or it goes beyond the end of the tar"
        if sample.image is None:
            sample.image = member
        elif "." in sample.image.name.rpartition("/")[2].partition(".")[2] and "." not in kind:
            # 1.mask.png came before 1.png
            other, sample.image = sample.image, member
            return f"{other.name} is a second image of the sample and left out"
        else:
            return f"a second image of the sample (first: {sample.image.name})"
    elif kind in ("cls", "txt", "json", "caption"):
        file = members.extractfile(member) if 0 <= member.size <= MAX_TEXT_BYTES else None
        if file is None:
            return f"{member.size} bytes of text are not read"
        text = file.read().decode("utf-8", "replace").strip()
        if kind == "cls":
            sample.label = text
        elif kind == "json":
            return _take_json(sample, text)
        elif text:
            sample.captions.append(text)
    return None


def _take_json(sample: _Sample, text: str) -> str | None:
    try:
        tree: Any = json.loads(text)
        if not isinstance(tree, dict):
            return None
        sample.objects = objects_of(tree.get("objects"))
    except (ValueError, RecursionError) as error:
        return f"no JSON that can be used: {error}"
    label = next((tree[key] for key in LABEL_KEYS if isinstance(tree.get(key), int | str)), None)
    if label is not None and sample.label is None:
        sample.label = str(label)
    labels = next((tree[key] for key in LABELS_KEYS if isinstance(tree.get(key), list)), None)
    if labels is not None:
        sample.labels = tuple(str(one) for one in labels if isinstance(one, int | str))
    for key in CAPTION_KEYS:
        value = tree.get(key)
        sample.captions += [
            item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str) and item
        ]
    return None
