"""What is sent of the working tree to the cluster with a job: code and configurations, as one small zip.

Left out are what .gitignore and .rayignore name, hidden files, environments, runs, and files of data or
weights by their endings. A `!pattern` in .rayignore brings any of these back. The same files give the same
bytes, so that a tree that did not change is not sent again.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from cluster.errors import UserError

LIMIT_BYTES = 100 * 2**20  # what Ray's job server takes
RAYIGNORE = ".rayignore"
IGNORE_FILES = (".gitignore", RAYIGNORE)

# what the tree of this project and of its users holds besides code
_DATA = (
    "parquet arrow csv tsv jsonl npy npz h5 hdf5 lmdb tar tgz gz bz2 xz zst zip 7z jpg jpeg png webp bmp "
    "tif tiff gif heic mp4 avi mov mkv safetensors pt pth ckpt bin onnx pkl pickle whl so o log db sqlite"
)
DATA_ENDINGS = frozenset(f".{ending}" for ending in _DATA.split())
NEVER_NAMES = frozenset({"__pycache__", "node_modules", "build", "dist"})
ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta")
RUN_MARKS = ("settings.yaml", "checkpoints")  # a folder with both is a run


@dataclass(frozen=True)
class TreeFile:
    """A file to send: its path below the root, with slashes, and its size."""

    name: str
    size_bytes: int


def files_of(root: Path) -> list[TreeFile]:
    """The files to send, sorted. Links to folders are not followed, because they mostly lead to data."""
    return sorted(_walk(root, root, []), key=lambda file: file.name)


def pack(root: Path, files: list[TreeFile], target: Path) -> None:
    """Writes the files to a zip, byte for byte the same for the same content.
    Raises UserError above 100 MiB.
    """
    total = sum(file.size_bytes for file in files)
    if total > LIMIT_BYTES:
        largest = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in _largest(files))
        raise UserError(
            f"the working tree has {total / 2**20:.0f} MiB to send, Ray takes {LIMIT_BYTES / 2**20:.0f} "
            f"(largest: {largest}); name what is not code in {RAYIGNORE}, one pattern a line as in "
            ".gitignore"
        )
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in files:
            entry = zipfile.ZipInfo(file.name)  # its time is 1980, whenever the file was written
            executable = os.access(root / file.name, os.X_OK)
            entry.external_attr = (0o755 if executable else 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(entry, (root / file.name).read_bytes())


def describe(files: list[TreeFile]) -> str:
    """How many files of what size, in words."""
    size = sum(file.size_bytes for file in files)
    return f"{len(files)} files, {size / 2**20:.1f} MiB"


def _walk(
    folder: Path, root: Path, above: list[tuple[Path, list[GitIgnoreSpec | None]]]
) -> Iterator[TreeFile]:
    rules = [*above, (folder, [_read_rules(folder / name) for name in IGNORE_FILES])]
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            if _wanted(path, rules, is_dir=True):
                yield from _walk(path, root, rules)
        elif entry.is_file() and _wanted(path, rules, is_dir=False):
            yield TreeFile(path.relative_to(root).as_posix(), entry.stat().st_size)


def _wanted(path: Path, rules: list[tuple[Path, list[GitIgnoreSpec | None]]], *, is_dir: bool) -> bool:
    ignored = [
        _verdict(path, [(folder, specs[index]) for folder, specs in rules], is_dir) for index in (0, 1)
    ]
    if ignored[1] is not None:  # .rayignore has the last word
        return not ignored[1]
    if ignored[0]:
        return False
    if path.name.startswith(".") or path.name in NEVER_NAMES or path.name.endswith(".egg-info"):
        return False
    if is_dir:
        is_environment = any((path / mark).exists() for mark in ENVIRONMENT_MARKS)
        return not is_environment and not all((path / mark).exists() for mark in RUN_MARKS)
    return path.suffix.lower() not in DATA_ENDINGS


def _verdict(path: Path, rules: list[tuple[Path, GitIgnoreSpec | None]], is_dir: bool) -> bool | None:
    """Whether a path is ignored, by the nearest file that speaks of it; None when none does."""
    for folder, spec in reversed(rules):
        name = path.relative_to(folder).as_posix() + ("/" if is_dir else "")
        verdict = None if spec is None else spec.check_file(name).include
        if verdict is not None:
            return verdict
    return None


def _read_rules(path: Path) -> GitIgnoreSpec | None:
    try:
        return GitIgnoreSpec.from_lines(path.read_text().splitlines())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _largest(files: list[TreeFile], count: int = 5) -> list[tuple[str, int]]:
    """The top-level entries of the tree that weigh most."""
    sizes: dict[str, int] = {}
    for file in files:
        top = file.name.split("/")[0]
        sizes[top] = sizes.get(top, 0) + file.size_bytes
    return sorted(sizes.items(), key=lambda item: -item[1])[:count]


@contextmanager
def packed(root: Path) -> Iterator[str]:
    """The working tree as a zip for a job's runtime environment, while the context lasts;
    says how large it is.
    """
    files = files_of(root)
    if not files:
        raise UserError(f"there is nothing to send in {root}; start from the folder with your code")
    with tempfile.TemporaryDirectory(prefix="fovea-tree-") as folder:
        target = Path(folder) / "tree.zip"
        pack(root, files, target)
        print(f"working tree: {describe(files)}, {target.stat().st_size / 2**20:.1f} MiB packed", flush=True)
        yield str(target)
