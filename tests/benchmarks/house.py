"""How hard is the code to take over? Lines, the longest functions, complexity, parameters,
and how files hang together.

    python -m tests.benchmarks.house [--at COMMIT ...] [--ways] [--growth COMMIT]

A table of the packages (not of the tests), with a column for each commit and one for what is here: lines; of
functions, the longest, the most complex (McCabe's, by ruff) and the one with most parameters; of
`pretrain.training.loop.train`, the same numbers; the ways through the code that the pages describe; of the
busiest folders, their files and the imports among them.
`--ways` counts the lines of the ways, and writes them into the pages' tables.
`--growth` tells where the packages' lines came from since a commit: those that changed them by many, and the
sum of all others.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("cluster", "pretrain", "finetune", "fovea")
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
PAGES = (Path("pretrain/README.md"), Path("finetune/README.md"))
# a table of steps and the paragraph above it; a row of it: its text, the functions, their lines
TABLE = re.compile(
    r"^((?:[^|\n]+\n)+)\n\| step \| where \| lines \|\n\|[-|]+\|\n((?:\|.*\n)+)", re.MULTILINE
)
STEP = re.compile(r"^(\| [^|]+ \| (`[^|]+`) \| )(\d+) \|$", re.MULTILINE)
LONG_FILE, LONG_FUNCTION, BUSIEST = 400, 60, 3  # lines; folders of each state that are listed
MANY_LINES = 100  # more or fewer by a commit that is listed
LOOP = "pretrain/training/loop.py:train"


@dataclass(frozen=True)
class Function:
    """A function's name and numbers."""

    name: str
    lines: int
    complexity: int
    parameters: int


def main(arguments: list[str] | None = None) -> None:
    """Prints the numbers."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.house", description=__doc__)
    parser.add_argument("--at", nargs="+", default=[], help="earlier commits to set beside")
    parser.add_argument("--ways", action="store_true", help="count the lines of the ways in pages")
    parser.add_argument("--growth", metavar="COMMIT", help="which commits since added and removed lines")
    options = parser.parse_args(arguments)
    if options.ways:
        write_ways()
        return
    if options.growth:
        print(growth(options.growth))
        return
    states = {}
    for commit in options.at:
        with tempfile.TemporaryDirectory() as folder:
            archive = subprocess.run(["git", "archive", commit], check=True, capture_output=True).stdout
            subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
            states[commit] = State.of(Path(folder))
    print(table(states | {"here": State.of(Path())}))


@dataclass(frozen=True)
class State:
    """The numbers of one state of the code: `told` by what they are of;
    `folders` has the files and the imports of each.
    """

    told: dict[str, str]
    folders: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, root: Path) -> State:
        """That of the code below a folder."""
        files = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
        complexity = complexities(root)
        functions = [function for path in files for function in functions_of(path, root, complexity)]
        lengths = [len(path.read_text().splitlines()) for path in files]
        told = {
            "lines, files": f"{sum(lengths):,}, {len(files)}",
            f"files above {LONG_FILE} lines": str(sum(length > LONG_FILE for length in lengths)),
            f"functions above {LONG_FUNCTION} lines": str(
                sum(one.lines > LONG_FUNCTION for one in functions)
            ),
        }
        for what, name in (
            ("lines", "longest function"),
            ("complexity", "most complex"),
            ("parameters", "most parameters"),
        ):
            worst = max(functions, key=lambda function: getattr(function, what))
            told[name] = f"{getattr(worst, what)} `{worst.name}`"
        for one in functions:
            if one.name == LOOP:
                told["the loop: lines, complexity, parameters"] = (
                    f"{one.lines}, {one.complexity}, {one.parameters}"
                )
        for page in PAGES:
            for way, lines in ways(page, root).items():
                told[f"lines {way.partition(',')[0].rstrip(':').lower().removeprefix('and ')}"] = str(lines)
        rooms = Counter(path.parent for path in files)
        arrows: Counter[Path] = Counter()
        for path in files:
            arrows[path.parent] += len(neighbours(path, root))
        folders = {
            str(folder.relative_to(root)): (rooms[folder], num) for folder, num in arrows.most_common()
        }
        return cls(told, folders)


def table(states: Mapping[str, State]) -> str:
    """The states side by side, as Markdown."""
    last = list(states.values())[-1]
    rows = {name: [state.told.get(name, "") for state in states.values()] for name in last.told}
    for folder in dict.fromkeys(one for state in states.values() for one in [*state.folders][:BUSIEST]):
        found = [state.folders.get(folder) for state in states.values()]
        rows[f"`{folder}`: files, imports among them"] = [
            "" if one is None else f"{one[0]}, {one[1]}" for one in found
        ]
    lines = [["", *states], ["---"] * (len(states) + 1), *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def growth(since: str) -> str:
    """Lines that commits since one added less those they removed, as Markdown, largest first."""
    log = subprocess.run(
        ["git", "log", "--no-merges", "--numstat", "--format=@%h %s", f"{since}..HEAD", "--"]
        + [f"{package}/*.py" for package in PACKAGES],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    net: Counter[str] = Counter()
    for line in log.splitlines():
        if line.startswith("@"):
            commit = line[1:]
        elif line:
            added, removed, _ = line.split("\t")
            net[commit] += int(added) - int(removed)
    listed = {commit: lines for commit, lines in net.most_common() if abs(lines) >= MANY_LINES}
    few = [lines for commit, lines in net.items() if commit not in listed]
    rows = [*listed.items(), (f"{len(few)} others", sum(few)), ("all", net.total())]
    return "\n".join(["| commit | lines |", "| --- | --- |"] + [f"| {what} | {n:+,} |" for what, n in rows])


def write_ways() -> None:
    """Writes the lines of each step into the pages, and prints the sums."""
    for page in PAGES:
        page.write_text(
            STEP.sub(lambda step: step[1] + str(lines_of_step(step[2])) + " |", page.read_text())
        )
        for way, lines in ways(page).items():
            print(f"{page}: {lines} lines {way[0].lower() + way[1:]}")


def ways(page: Path, root: Path = Path()) -> dict[str, int]:
    """The sentences above the tables of ways in a page,
    and how many lines each has in the code as it is there.
    """
    found: dict[str, int] = {}
    text = (root / page).read_text() if (root / page).exists() else ""  # at early commits
    for way in TABLE.finditer(text):
        found[way[1].partition("\n")[0]] = sum(
            lines_of_step(step[2], root) for step in STEP.finditer(way[2])
        )
    return found


def lines_of_step(cell: str, root: Path = Path()) -> int:
    """Of the functions that a cell names, as in: `file.py`: `one`, `two`; `other.py`: `three`.
    Raises KeyError.
    """
    lines = 0
    for part in cell.split("; "):
        path, *names = re.findall(r"`([^`]+)`", part)
        lengths = {
            name: length
            for node in [ast.parse((root / path).read_text())]
            for name, length in named_functions(node)
        }
        lines += sum(lengths[name] for name in names)
    return lines


def named_functions(node: ast.AST, before: str = "") -> Iterator[tuple[str, int]]:
    """Qualified names and lines."""
    for one in getattr(node, "body", []):
        if isinstance(one, FUNCTION):
            yield before + one.name, (one.end_lineno or one.lineno) - one.lineno + 1
        elif isinstance(one, ast.ClassDef):
            yield from named_functions(one, f"{before}{one.name}.")


def complexities(root: Path) -> dict[str, int]:
    """McCabe's number of every function, by its file and name."""
    command = [
        "ruff", "check", "--isolated", "--no-cache", "--select", "C901", "--config",
        "lint.mccabe.max-complexity=0", "--output-format", "json", *PACKAGES,
    ]  # fmt: skip
    told = subprocess.run(
        [Path(sys.executable).parent / command[0], *command[1:]], cwd=root, capture_output=True
    )
    found: dict[str, int] = {}
    for one in json.loads(told.stdout):
        name, number = re.findall(r"`(\w+)` is too complex \((\d+)", one["message"])[0]
        key = f"{Path(one['filename']).relative_to(root.resolve())}:{name}"
        found[key] = max(found.get(key, 0), int(number))
    return found


def functions_of(path: Path, root: Path, complexity: Mapping[str, int]) -> Iterator[Function]:
    """All functions and methods of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, FUNCTION):
            given = node.args
            number = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            name = f"{path.relative_to(root)}:{node.name}"
            yield Function(name, length, complexity.get(name, 1), number)


def neighbours(path: Path, root: Path) -> set[str]:
    """The files of the same folder that a file imports."""
    package = ".".join(path.parent.relative_to(root).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
        elif isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        for name in names:
            above, _, last = name.rpartition(".")
            if above == package and (path.parent / f"{last}.py").exists():
                found.add(last)
    return found


if __name__ == "__main__":
    main()
