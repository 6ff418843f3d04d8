"""The images in the pages, out of the reports of a finished `make demo`, so that they stay true.

    python -m tests.benchmarks.page_figures [--demo runs/demo] [--out docs]

Opens the reports in the machine's own Chromium and keeps: of pretraining the top (the verdict, the numbers
and the first curves), and where the encoder looks; of the detector boxes beside the truth.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.browser import find_browser

# the image, the report it is of, the section that it shows (none: the top of the page),
# and its height in pixels at most
FIGURES = (
    ("report.png", "pretrain/report.html", None, 900),
    ("attention.png", "pretrain/report.html", "#attention", 520),
    ("detections.png", "detect/report.html", "#predictions", 620),
)
WIDTH = 1000
NUM_COLOURS = 64  # enough for a page, and a small file; photos need more
NUM_PHOTO_COLOURS = 200


def main() -> None:
    """Reads the command line and draws."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.page_figures", description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        for name, report, section, height in FIGURES:
            page.goto((options.demo / report).resolve().as_uri())
            image = shot(page, section, height).convert("RGB")
            colours = NUM_COLOURS if section is None else NUM_PHOTO_COLOURS
            path = options.out / name
            image.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
            print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")
        browser.close()


def shot(page: Page, section: str | None, height: int) -> Image.Image:
    """A section of a page, or its top."""
    if section is None:
        data = page.screenshot()
    else:
        page.add_style_tag(
            content="nav { display: none !important }"
        )  # which stays in sight, over the section
        data = page.locator(section).first.screenshot()
    image = Image.open(io.BytesIO(data))
    return image.crop((0, 0, image.width, min(image.height, height)))


if __name__ == "__main__":
    main()
