"""Tar shards with WebDataset naming (https://github.com/webdataset/webdataset):
files of one stem make one sample.

Nothing is extracted: a tar is scanned once for where its members lie,
and images are read from there by range.
"""

from __future__ import annotations

import posixpath
import struct
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from cluster import storage
from cluster.errors import UserError
from pretrain.data.packing.sources.image_record import Record
from pretrain.data.packing.sources.parallel import REMOTE_THREADS, in_order
from pretrain.data.packing.sources.records import Account, Listing
from pretrain.data.packing.sources.sidecars import Said
from pretrain.data.packing.sources.splits import layout_of, split_in_name
from pretrain.data.packing.sources.texts import variants
from pretrain.data.packing.sources.tree import OTHER_IMAGES, Tree
from pretrain.data.reading.manifest import IMAGE_SUFFIXES

MAX_TEXT_BYTES = 2**20
# what the standard library raises for headers that make no sense, besides its own errors
TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, EOFError, LookupError, struct.error)


@dataclass(frozen=True)
class _Tar:
    """Holds images as members."""

    file: storage.FileInfo

    def read(self, place: int, size_bytes: int) -> bytes:
        """The bytes of the member that begins at a byte of the tar."""
        return bytes(storage.read_range(self.file, place, place + size_bytes))


@dataclass
class _Sample:
    """What the members of one stem say."""

    image: tarfile.TarInfo | None = None
    said: Said = field(default_factory=Said)


@dataclass
class _Scanned:
    """What one tar holds."""

    records: list[Record] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    account: Account = field(default_factory=Account)


def tar_records(src: str, *, tree: Tree | None = None, labels: str = "auto") -> Listing:
    """The images in a tar, or in all tars of a folder or glob,
    with what lies beside them under the same stem.

    `.cls` and `.label` are labels, `.txt`, `.text`, `.caption` and `.caption.txt` captions, and `.json` may
    have a label, labels, captions and objects; equal captions of one sample count once. Where no sample says
    a label and all images lie one folder deep in two folders or more, their folders are their classes,
    as on disk.

    Args:
        src: a tar, a folder or a glob.
        tree: of `src`, where it is known already.
        labels: `none` takes no folders for classes.

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
    names = [tar.url[shared:] for tar in tars]
    listing = Listing(told=f"{len(tars)} tars with samples (first: {names[0]})")
    account = listing.account
    num_threads = 2 if storage.is_local(tars[0].url) else REMOTE_THREADS
    split_of = _splits(names)
    path_of = {file.url: path for path, file in tree.files.pairs()} if tree is not None else {}
    for tar, scanned in zip(
        tars, in_order(lambda tar: _scan(tar, tar.url[shared:]), tars, num_threads), strict=True
    ):
        split = split_of.get(tar.url[shared:])
        listing.records.extend(replace(record, split=split) for record in scanned.records)
        listing.problems += scanned.problems
        account.annotations += scanned.account.annotations
        for kind, num in scanned.account.counts.items():
            account.count(kind, scanned.account.examples[kind], num, said=True)
        account.read.add(path_of.get(tar.url, tar.url[shared:]))
    if not listing.records:
        raise UserError(f"no images in the tars of {src} (looked for {', '.join(IMAGE_SUFFIXES[:9])}, ...)")
    for kind, num in sorted(account.counts.items()):
        listing.notes.append(f"{num} times in the tars: {kind} (first: {account.examples[kind]})")
    _classes_of_folders(listing, names, labels)
    listing.notes += variants(
        Counter(record.label for record in listing.records if record.label is not None)
    )
    return listing


def _splits(names: Sequence[str]) -> dict[str, str]:
    """Tar -> split, by the folders of the tars, else by their names where all speak of one."""
    layout = layout_of(names)
    if layout.level is not None:
        return {name: split for name in names if (split := layout.split_of(name)) is not None}
    found = {name: split for name in names if (split := split_in_name(name)) is not None}
    return found if len(found) == len(names) and len(set(found.values())) > 1 else {}


def _classes_of_folders(listing: Listing, names: Sequence[str], labels: str) -> None:
    """Takes folders within tars for classes, where nothing else says any and they look so."""
    records = listing.records
    if labels == "none" or records.knows("label") or records.knows("labels"):
        return

    def inner() -> Iterator[str]:
        for path in records.paths():
            yield next((path[len(name) + 1 :] for name in names if path.startswith(f"{name}/")), "")

    folders = set(map(posixpath.dirname, inner()))
    if (
        len(folders) < 2
        or "" in folders
        or any("/" in folder or folder.startswith(".") for folder in folders)
    ):
        if folders != {""}:
            listing.notes.append(
                "no labels: the images in the tars do not lie exactly one folder deep, in two folders or "
                "more"
            )
        return
    layout = layout_of(inner())
    for number, path in enumerate(inner()):
        if layout.level is not None:
            records.put_split(number, layout.split_of(path))
        else:
            records[number] = replace(records[number], label=posixpath.dirname(path))
    if layout.level is not None:
        return
    listing.notes.append(
        f"the {len(folders)} folders in the tars are taken for classes; --labels none takes none"
    )


def _scan(tar: storage.FileInfo, name: str) -> _Scanned:
    """The records of one tar, its problems, and what else lies in it."""
    samples: dict[str, _Sample] = {}
    found = _Scanned()
    with storage.open_input(tar.url) as source:
        try:
            with tarfile.open(fileobj=source, mode="r:") as members:
                for member in members:
                    location = f"{name}/{member.name}"
                    if member.isfile():
                        if reason := _take(samples, members, member, tar.size_bytes, found, location):
                            found.problems.append((location, reason))
                    elif not member.isdir():
                        found.account.count("link or device in a tar, never followed", location)
        except TAR_ERRORS as error:
            raise UserError(
                f"{tar.url} is not a plain tar, or it is damaged ({error}); unpack compressed tars first"
            ) from error
    holder = _Tar(tar)
    with_captions = any(sample.said.captions is not None for sample in samples.values())
    for key, sample in samples.items():
        if sample.image is None:
            found.problems.append((f"{name}/{key}", "a sample without an image"))
            continue
        said = sample.said
        if said.num_blank:
            found.account.count("blank caption, left out", f"{name}/{key}", said.num_blank)
        found.records.append(
            Record(
                url=tar.url,
                # the member's name only names the image in the shards:
                # nothing is ever written to such a path
                path=f"{name}/{sample.image.name}",
                size_bytes=sample.image.size,
                label=said.label,
                labels=said.labels,
                objects=said.objects,
                captions=tuple(said.captions or ()) if with_captions else None,
                problem=said.problem,
                holder=holder,
                place=sample.image.offset_data,
            )
        )
    return found


def _take(
    samples: dict[str, _Sample],
    members: tarfile.TarFile,
    member: tarfile.TarInfo,
    tar_bytes: int,
    found: _Scanned,
    location: str,
) -> str | None:
    """Adds a member to its sample, named up to the first dot, the kind behind it; or says why not."""
    folder, slash, name = member.name.rpartition("/")
    stem, _, kind = name.partition(".")
    if not stem or not kind:
        found.account.count("member that is hidden or has no ending, not read", location)
        return None
    kind = kind.lower()
    ending = f".{kind.rpartition('.')[2]}"
    key = folder + slash + stem
    if ending in IMAGE_SUFFIXES:
        sample = samples.setdefault(key, _Sample())
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
        return None
    if ending in OTHER_IMAGES:
        return f"an image of a format that is not read ({ending})"
    said = Said()
    if not said.take(kind, b""):
        found.account.count(f"member of a kind that is not read (.{kind})", location)
        return None
    sample = samples.setdefault(key, _Sample())
    found.account.annotations += 1
    file = members.extractfile(member) if 0 <= member.size <= MAX_TEXT_BYTES else None
    if file is None:
        return f"{member.size} bytes of text are not read"
    num = len(sample.said.problems)
    sample.said.take(kind, file.read())
    return "; ".join(sample.said.problems[num:]) or None
