"""What the views of a method look like: a few images with their crops, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pretrain.data.images.pixels import as_channels, open_image
from pretrain.data.reading.loader import filled
from pretrain.data.views.random_views import RandomViews
from pretrain.data.views.recipes import ViewSpec
from pretrain.data.views.view_sheet import shown
from pretrain.reporting.page import Section, Templates
from pretrain.reporting.page_images import data_url
from pretrain.reporting.samples import Row

NUM_IMAGES, MAX_VIEWS = 6, 8


def view_section(rows: Sequence[Row], specs: Sequence[ViewSpec], *, seed: int, channels: int) -> Section:
    """The views of these rows in the first epoch of the run (and in the
    second, where there are few of them).
    """
    passes = range(max(1, min(2, 4 // len(specs))))
    cards = [_card(row, specs, passes, seed=seed, channels=channels) for row in rows[:NUM_IMAGES]]
    words = " and second" if len(passes) == 2 else ""
    lead = (
        f"What the method sees of an image in the first{words} epoch: crops, framed in the image, with "
        "changed colours. It learns from what stays the same."
    )
    return Section("views", "Views", Templates().render("views.html", cards=cards), lead)


def _card(
    row: Row, specs: Sequence[ViewSpec], passes: Sequence[int], *, seed: int, channels: int
) -> dict[str, Any]:
    largest = max(spec.size for spec in specs)
    boxes: list[dict[str, Any]] = []
    views: list[dict[str, Any]] = []
    for pass_number in passes:
        transform = RandomViews(specs, seed=seed, channels=channels)
        filling, _ = filled(transform, [row.data], row_ids=[row.row_id], passes=[pass_number])
        assert filling.geometry_VB5 is not None
        for number, (spec, array) in enumerate(zip(specs, filling.arrays, strict=True)):
            if len(views) == MAX_VIEWS:
                break
            left, top, right, bottom = (
                100 * float(fraction) for fraction in filling.geometry_VB5[number, 0, :4]
            )
            colour = (pass_number if len(passes) > 1 else number) % 2 + 1
            boxes.append(
                {"x": f"{left:.1f}", "y": f"{top:.1f}", "width": f"{right - left:.1f}",
                 "height": f"{bottom - top:.1f}",
                 "colour": colour}
            )  # fmt: skip
            views.append(
                {
                    "url": data_url(shown(array[0]), longest=144, quality=85),
                    "scale": round(100 * spec.size / largest),
                    "title": f"view {number + 1}"
                    + (f", epoch {pass_number + 1}" if len(passes) > 1 else ""),
                    "colour": colour,
                }
            )
    pixels = shown(as_channels(open_image(row.data, channels=channels).decode(1), channels))
    return {"url": data_url(pixels, longest=200), "boxes": boxes, "views": views}
