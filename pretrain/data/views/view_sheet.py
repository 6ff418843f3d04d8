"""A contact sheet of views: what a recipe makes of some images of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from cluster import storage
from pretrain.data.images.pixels import as_channels, open_image
from pretrain.data.images.sheet import SIDE, Cell, draw_sheet, thumbnail
from pretrain.data.reading.loader import filled
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.order import Segment
from pretrain.data.reading.shards import Shards
from pretrain.data.views.random_views import RandomViews
from pretrain.data.views.recipes import recipe_views


def write_view_sheet(
    url: str,
    target: str,
    recipe: str,
    *,
    size: int,
    arguments: Mapping[str, Any],
    image_column: str = "image",
    channels: int = 3,
    num_images: int = 8,
    seed: int = 0,
) -> int:
    """Writes a PNG with a line for each image: the image with its crops drawn in,
    then its views as the method sees them.

    The views are those of the first epoch of a run with this seed. Returns the number of images drawn; those
    that cannot be decoded stand there with the reason.

    Raises UserError for what is wrong with the data set or the recipe.
    """
    specs = recipe_views(recipe, size, arguments)
    shards = Shards(
        load_manifest(url, columns=[image_column], image_column=image_column), image_column=image_column
    )
    num_rows = shards.manifest.num_rows
    row_ids = np.unique(np.linspace(0, num_rows - 1, min(num_images, num_rows)).round().astype(np.int64))
    images = [_read(shards, row_id) for row_id in row_ids.tolist()]
    filling, bad = filled(RandomViews(specs, seed=seed, channels=channels), images, row_ids=row_ids)
    assert filling.geometry_VB5 is not None
    cells: list[Cell] = []
    num_drawn = 0
    for index, row_id in enumerate(row_ids.tolist()):
        if index in bad:
            cells += [Cell(None, bad[index], f"row {row_id}")] + [Cell(None, "", "")] * len(specs)
            continue
        pixels_CHW = as_channels(open_image(images[index], channels=channels).decode(1), channels)
        num_drawn += 1
        crops = [
            (tuple(positions[:4]), str(view))
            for view, positions in enumerate(filling.geometry_VB5[:, index].tolist(), 1)
        ]
        cells.append(Cell(thumbnail(shown(pixels_CHW)), "with its crops", f"row {row_id}", crops))
        for view, (spec, array) in enumerate(zip(specs, filling.arrays, strict=True)):
            flipped = ", mirrored" if filling.geometry_VB5[view, index, 4] else ""
            cells.append(
                Cell(_view(array[index], size), f"view {view + 1}{flipped}", f"{spec.size} x {spec.size}")
            )
    storage.write_bytes(target, draw_sheet(cells, num_columns=1 + len(specs)))
    return num_drawn


def _read(shards: Shards, row_id: int) -> Any:
    groups, rows = shards.manifest.locate([row_id])
    (piece,) = shards.read(Segment(int(groups[0]), int(rows[0]), int(rows[0]) + 1))
    return piece.images[0]


def _view(pixels_CHW: np.ndarray, max_side: int) -> Image.Image:
    # smaller views are drawn smaller, to the scale of the largest
    side = max(1, round(SIDE * pixels_CHW.shape[1] / max(max_side, pixels_CHW.shape[1])))
    filtering = Image.Resampling.NEAREST if side > pixels_CHW.shape[1] else Image.Resampling.BOX
    return Image.fromarray(shown(pixels_CHW)).resize((side, side), filtering)


def shown(pixels_CHW: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] of any number of channels: grey for one or two, the first three of more."""
    chosen = pixels_CHW[:3] if len(pixels_CHW) >= 3 else pixels_CHW[:1].repeat(3, axis=0)
    return np.ascontiguousarray(chosen.transpose(1, 2, 0))
