"""Files and names that pages and docstrings mention are there."""

import re
import subprocess
from pathlib import Path

PACKAGES = "cluster|pretrain|finetune|fovea"
FILE = re.compile(rf"`((?:{PACKAGES}|configs|docs|tests)/[\w./-]+\.(?:py|md|yaml|html|css))\b")
NAME = re.compile(rf"`((?:{PACKAGES}|tests)(?:\.\w+)+)`")
SETTING = re.compile(r"`([\w.]+)`")


def texts():
    told = subprocess.run(["git", "ls-files", "*.md", "*.py"], capture_output=True, text=True)
    # figures of the past name files as they were
    return [path for path in map(Path, told.stdout.split()) if path.name != "RESULTS.md" and path.exists()]


def test_files_that_texts_name_are_there():
    paths = texts()
    missing = {
        f"{path}: {name}"
        for path in paths
        for name in FILE.findall(path.read_text())
        if not Path(name).exists() and "NAME" not in name
    }
    assert len(paths) > 300 and not missing


def test_what_texts_name_by_dots_is_there():
    settings = set(SETTING.findall(Path("docs/settings.md").read_text()))
    named = {(path, name) for path in texts() for name in NAME.findall(path.read_text())}
    named = {(path, name) for path, name in named if name not in settings}
    missing = {f"{path}: {name}" for path, name in named if not is_there(name)}
    assert len(named) > 50 and not missing


def is_there(name):
    """A folder, a file, or what a file defines, imports or offers later."""
    parts = name.split(".")
    for num in range(len(parts), 0, -1):
        path = Path(*parts[:num])
        file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        if file.exists():
            code = file.read_text()
            return all(
                re.search(
                    rf"(def|class) {part}\b|^ *{part}\b|self\.{part}\b|import .*\b{part}\b|\"{part}\"",
                    code,
                    re.M,
                )
                for part in parts[num:]
            )
        if path.is_dir():
            return num == len(parts)
    return False
