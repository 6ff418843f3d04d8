"""A page in the machine's own Chromium, headless: what it says, asks for and shows."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

# every image of HTML and SVG is decoded by the browser itself; gives those that cannot be
IMAGES_THAT_FAIL = """async () => {
  const sources = [...document.images].map(i => i.src)
    .concat([...document.querySelectorAll('image')].map(i => i.getAttribute('href')));
  const failed = [];
  for (const source of sources) {
    const image = new Image(); image.src = source;
    try { await image.decode(); if (!image.naturalWidth) failed.push(source.slice(0, 60)); }
    catch (error) { failed.push(source.slice(0, 60)); }
  }
  return [sources.length, failed];
}"""


@dataclass(frozen=True)
class Seen:
    """What a browser saw of a page."""

    console: list
    requests: list
    num_images: int
    failed_images: list
    overflow: int
    text: str
    background: str
    scripts: int


def find_browser():
    """The path of a browser on this machine; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser on this machine (looked for {', '.join(BROWSERS)})")
    return found


def look(path, *, widths=(390, 1400), schemes=("light", "dark"), screenshots=None):
    """Opens a local page at each width in each colour scheme; returns what was seen by (width, scheme)."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    seen, address = {}, Path(path).as_uri()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        for width in widths:
            for scheme in schemes:
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                console, requests = [], []
                page.on("console", lambda message, console=console: console.append(message.text))
                page.on("pageerror", lambda error, console=console: console.append(str(error)))
                page.on("request", lambda request, requests=requests: requests.append(request.url))
                page.goto(address)
                num, failed = page.evaluate(IMAGES_THAT_FAIL)
                seen[width, scheme] = Seen(
                    console=console,
                    requests=[url for url in requests if not url.startswith("data:") and url != address],
                    num_images=num,
                    failed_images=failed,
                    overflow=page.evaluate("document.documentElement.scrollWidth - window.innerWidth"),
                    text=page.inner_text("body"),
                    background=page.evaluate("getComputedStyle(document.body).backgroundColor"),
                    scripts=page.evaluate("document.scripts.length"),
                )
                if screenshots is not None:
                    page.screenshot(path=str(screenshots / f"{width}-{scheme}.png"), full_page=True)
                page.close()
        browser.close()
    return seen


def assert_sound(seen, *, min_images):
    """No word in the console, nothing asked of any network, all images there, no script,
    nothing wider than the screen.
    """
    for place, one in seen.items():
        assert one.console == [] and one.requests == [] and one.scripts == 0, place
        assert one.failed_images == [] and one.num_images >= min_images, place
        assert one.overflow <= 0, place
    for width in {width for width, _ in seen}:
        backgrounds = {scheme: one.background for (at, scheme), one in seen.items() if at == width}
        assert len(set(backgrounds.values())) == len(backgrounds), "light and dark look alike"
