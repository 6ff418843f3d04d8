"""Explanations as PNGs and one page that holds them all and loads nothing."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cluster import storage
from pretrain.explaining.explainer import Explanation

PAGE = "index.html"
STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #666; --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #eee; --soft: #aaa; --page: #161616; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page);
  margin: 1.5rem auto; max-width: 75rem; padding: 0 1rem; }
h2 { overflow-wrap: anywhere; margin-top: 2.5rem; } h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; } figure { margin: 0; }
figcaption { font-size: .8rem; max-width: 10rem; overflow-wrap: anywhere; }
figcaption span { color: var(--soft); }
img { display: block; max-width: 100%; }
@media print { section { break-inside: avoid-page; } }
"""
LEGEND = (
    "Each map is scaled from its own lowest value (dark) to its highest (yellow); <em>peak n x even</em> "
    "says how many times more attention the strongest position gets than if attention were even: near 1 "
    "the colours mean nothing. Rollout follows attention through all layers and leaves out what "
    "convolutions mix. Colours of features are the first three principal components over all images of "
    "this page: equal colours, equal features."
)


def write_explanations(out: str, explanations: Sequence[Explanation], *, title: str) -> str:
    """Writes a folder of PNGs for each image (a strip a row) and the page; returns the page's URL.

    Raises UserError when `out` cannot be written.
    """
    sections = []
    for number, explanation in enumerate(explanations, 1):
        folder = f"{number:03}-{_file_name(explanation.name)}"
        rows = explanation.rows()
        for row in rows:
            url = storage.join(out, folder, f"{_file_name(row.title)}.png")
            storage.write_bytes(url, _encoded(row.strip(), "PNG"))
        parts = "".join(
            f'<h3>{html.escape(row.title)}</h3><div class="row">'
            + "".join(_figure(panel.caption, panel.note, panel.pixels_HW3) for panel in row.panels)
            + "</div>\n"
            for row in rows
        )
        sections.append(f"<section><h2>{html.escape(explanation.name)}</h2>\n{parts}</section>\n")
    heading = html.escape(title)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{heading}</title><style>{STYLE}</style></head>\n<body><h1>{heading}</h1><p>{LEGEND}</p>\n"
        + "".join(sections)
        + "</body></html>\n"
    )
    url = storage.join(out, PAGE)
    storage.write_bytes(url, page.encode())
    return url


def _figure(caption: str, note: str, pixels_HW3: np.ndarray) -> str:
    data = base64.b64encode(_encoded(pixels_HW3, "JPEG")).decode()
    height, width = pixels_HW3.shape[:2]
    return (
        f'<figure><img alt="{html.escape(caption)}" width="{width}" height="{height}" '
        f'src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{html.escape(caption)} <span>{html.escape(note)}</span></figcaption></figure>"
    )


def _encoded(pixels_HW3: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, kind, **({"quality": 88} if kind == "JPEG" else {}))
    return buffer.getvalue()


def _file_name(text: str) -> str:
    """Letters, digits, dots and dashes of a text that may hold anything."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text.replace("..", "-")).strip("-.")[:60] or "image"
