"""python -m tests.benchmarks.page_figures REPORT.html docs/report.png: the image of a report on the front page.

Opens the page in the machine's own Chromium and keeps its top: the verdict, the numbers and the first curves. The page on the
front is that of `make demo`: runs/demo/pretrain/report.html.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.browser import find_browser

NUM_COLOURS = 64  # enough for a page, and a small file


def main() -> None:
    """Reads the command line and draws."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.page_figures", description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--height", type=int, default=900)
    options = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": options.width, "height": options.height}, color_scheme="light")
        page.goto(options.report.resolve().as_uri())
        shot = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    shot.convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(options.out, optimize=True)
    print(f"{options.out}: {options.out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
