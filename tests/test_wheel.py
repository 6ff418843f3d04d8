"""The wheel: installed into a fresh environment, away from the sources,
it runs the five lines of the front page.

Its dependencies are those of this environment, so that nothing is fetched.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import pytest

from tests.finetune.stripes import stripes
from tests.test_pages import FEW, README, blocks, commands_of

pytestmark = pytest.mark.slow
SOURCES = ("cluster", "pretrain", "finetune", "fovea", "configs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if Path(name).is_dir():
            shutil.copytree(name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(name, tree / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(tree),
    ]
    subprocess.run(build, check=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The folder of the programs of an environment that has the wheel."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = place / "bin" / "python"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            str(wheel),
        ],
        check=True,
    )
    return place / "bin"


@pytest.fixture
def away(tmp_path, monkeypatch):
    """An empty folder with a few photos, where nothing of the sources is seen."""
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for number in range(48):
        place = tmp_path / "my" / "photos" / ("across" if number % 2 else "down")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(stripes(number)[0])
    page = os.path.abspath(README)
    monkeypatch.chdir(tmp_path)
    return Path(page)


def test_it_holds_types_templates_and_configurations(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"{package}/py.typed" for package in ("cluster", "pretrain", "finetune", "fovea")} <= set(names)
    assert (
        "pretrain/reporting/templates/page.html" in names
        and "finetune/reporting/templates/style.css" in names
    )
    shipped = {name.partition("share/fovea/")[2] for name in names if "share/fovea/" in name}
    assert "configs/notebooks/own_photos.ipynb" in shipped
    assert {str(path) for path in Path("configs").rglob("*.yaml")} <= shipped
    assert not any(name.startswith("tests") for name in names)


def test_help_answers_at_once(environment, away):
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run([environment / "fovea", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 1, seconds


def test_it_runs_the_five_lines(environment, away):
    where = (
        "import pretrain, finetune, cluster; print(*{m.__file__ for m in (pretrain, finetune, "
        "cluster)}, sep='\\n')"
    )
    files = subprocess.run(
        [environment / "python", "-c", where], check=True, capture_output=True, text=True
    ).stdout
    assert all(file.startswith(str(environment.parent)) for file in files.split()), files
    block = next(text for text in blocks(away, "") if "data import" in text)
    lines = [words for words in commands_of(block) if words[0] == "fovea"]
    assert len(lines) == 4
    for words in lines:
        few = FEW if words[2].endswith(".yaml") else []
        subprocess.run([environment / words[0], *words[1:], *few], check=True)
    assert Path("runs/classifier/report.html").exists() and Path("predicted/predictions.parquet").exists()
