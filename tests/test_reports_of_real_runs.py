"""The reports of the demo and of a run on real photos, in a browser.
Screenshots go to FOVEA_SCREENSHOTS where it is set.
"""

import os
from argparse import Namespace
from pathlib import Path

import pytest

from cluster.errors import run_command
from cluster.jobs.pipeline.command import pipeline
from fovea.demo import PIPELINE, settings_of
from pretrain.__main__ import main
from pretrain.data.packing.importing import ImportOptions, import_images
from tests.browser import assert_sound, look

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "clothing_cc0"

pytestmark = pytest.mark.slow


def screenshots(name):
    if not (folder := os.environ.get("FOVEA_SCREENSHOTS")):
        return None
    target = Path(folder) / name
    target.mkdir(parents=True, exist_ok=True)
    return target


@pytest.mark.skipif(not PHOTOS.exists(), reason="needs the photos of clothing_cc0")
def test_the_report_of_a_run_on_real_photos(tmp_path):
    for split in ("train", "validation"):
        import_images(
            str(PHOTOS / split), str(tmp_path / split), ImportOptions(short_side=96), show_progress=False
        )
    options = [
        "configs/pretrain/small/simclr.yaml", f"data.url={tmp_path / 'train'}", f"out={tmp_path / 'run'}",
        f"knn.train_url={tmp_path / 'train'}", f"knn.test_url={tmp_path / 'validation'}",
        "training.steps=60", "knn.every_epochs=1", "cluster.workers=0",
    ]  # fmt: skip
    assert run_command(lambda: main(options)) == 0
    seen = look(tmp_path / "run" / "report.html", screenshots=screenshots("photos"))
    assert_sound(seen, min_images=200)
    for one in seen.values():
        assert "outwear" in one.text and "could not be made" not in one.text
        assert "of unseen images correctly, where the weights it started from reach " in one.text
        assert "always guessing the most frequent class reaches 23.8 %" in one.text


def test_the_reports_of_the_demo(tmp_path):
    less = [
        f"out={tmp_path}",
        "images=240",
        "unlabelled=200",
        *settings_of(None, steps=40, has_teacher=True),
    ]
    assert pipeline(Namespace(file=PIPELINE, settings=less, address=None)) == 0
    pages = sorted(tmp_path.glob("**/report.html"))
    assert {page.parent.name for page in pages} >= {"pretrain"} and len(pages) >= 2
    for page in pages:
        seen = look(page, screenshots=screenshots("-".join(page.relative_to(tmp_path).parts[:-1]) or "all"))
        assert_sound(seen, min_images=0)
        assert all("could not be made" not in one.text for one in seen.values())
