"""An encoder's attention, rollout and features for some images."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cluster.errors import UserError, first_line
from pretrain.data.images.decode import BadImage
from pretrain.data.images.pixels import as_channels, open_image
from pretrain.data.images.sheet import Cell, draw_sheet
from pretrain.data.reading.picking import NamedImage, pick_images
from pretrain.data.views.augment import normalise
from pretrain.data.views.view_sheet import shown
from pretrain.encoders import Encoder, load_encoder, read_encoder_config
from pretrain.encoders.attention_maps import attention_maps, attention_rollout, eval_mode
from pretrain.explaining.components import as_colours
from pretrain.explaining.panels import Row, panel_rows

DEFAULT_SIZE = 224


@dataclass(frozen=True)
class ClassMap:
    """What speaks for a class: `heat_HW` at any size, not negative;
    `score` is what the model gives the class.
    """

    name: str
    score: float
    heat_HW: np.ndarray
    method: str


@dataclass(frozen=True)
class Explanation:
    """What an encoder makes of an image.

    Attributes:
        name: of the image.
        pixels_HW3: the image as the encoder got it, before it was normalised.
        attention: for each layer [heads, H, W], each head summing to 1.
        rollout_HW: attention through all layers, summing to 1; None without attention.
        features: for the last maps, by `stage N`, uint8 [H, W, 3]: their first three principal components as
            colours, alike for all images that were explained together.
        classes: of a fine-tuned model, the likeliest first.
    """

    name: str
    pixels_HW3: np.ndarray
    attention: dict[str, np.ndarray]
    rollout_HW: np.ndarray | None
    features: dict[str, np.ndarray]
    classes: list[ClassMap] = field(default_factory=list)

    def rows(self) -> list[Row]:
        """Images of all of it, in rows with a title."""
        return panel_rows(self)

    def sheet(self) -> Image.Image:
        """All of it on one labelled sheet, for a notebook."""
        cells = [
            Cell(
                Image.fromarray(panel.pixels_HW3),
                f"{row.title}: {panel.caption}" if panel.caption else row.title,
                panel.note,
            )
            for row in self.rows()
            for panel in row.panels
        ]
        return Image.open(io.BytesIO(draw_sheet(cells)))


class Explainer:
    """An encoder, and how its images are made.

    Args:
        encoder: is put into eval mode while it looks.
        size: short side in pixels; a multiple of the largest stride fits best. Larger ones give finer maps,
            further from what the encoder was trained on.
        square: cuts out the central square, for networks that take no other shape.
        queries: whose attention, see `attention_maps`.
        class_maps: gives the class maps of a normalised image [1, C, H, W].
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        square: bool = False,
        queries: str = "all",
        class_maps: Callable[[Tensor], list[ClassMap]] | None = None,
    ) -> None:
        self.encoder, self.size, self.square, self.queries = encoder, size, square, queries
        self.mean, self.std, self.class_maps = mean, std, class_maps
        self.bad: dict[str, str] = {}

    def explain(self, images: Sequence[NamedImage]) -> list[Explanation]:
        """Explains images together. Those that cannot be decoded are left out
        and listed in `bad` with the reason.

        Raises UserError when none is left, or the encoder takes no images of their size.
        """
        looks, self.bad = [], {}
        for image in images:
            try:
                looks.append(self._look(image, self._pixels(image.data)))
            except BadImage as error:
                self.bad[image.name] = str(error)
        if not looks:
            raise UserError(
                "none of the images can be decoded: "
                + "; ".join(f"{n}: {why}" for n, why in self.bad.items())
            )
        colours = {stage: as_colours([features[stage] for _, features in looks]) for stage in looks[0][1]}
        return [
            Explanation(
                look.name,
                look.pixels_HW3,
                look.attention,
                look.rollout_HW,
                {stage: maps[index] for stage, maps in colours.items()},
                look.classes,
            )
            for index, (look, _) in enumerate(looks)
        ]

    def _look(self, image: NamedImage, pixels_CHW: Tensor) -> tuple[Explanation, dict[str, np.ndarray]]:
        """An image's explanation without its colours, and the features [C, H, W] that these are made of."""
        device = next(self.encoder.parameters()).device
        images = normalise((pixels_CHW[None] / 255).to(device), self.mean, self.std)
        try:
            attention = attention_maps(self.encoder, images, queries=self.queries)
            rollout = attention_rollout(self.encoder, images, queries=self.queries)
            with eval_mode(self.encoder), torch.no_grad():
                maps = self.encoder(images)
        except (AssertionError, RuntimeError) as error:
            height, width = images.shape[2:]
            raise UserError(
                f"{image.name}: the encoder does not take images of {height} x {width} pixels "
                f"({first_line(error)}); --square and --size may "
                "help"
            ) from error
        look = Explanation(
            image.name,
            shown(pixels_CHW.round().byte().numpy()),
            {name: heads[0].float().cpu().numpy() for name, heads in attention.items()},
            None if rollout is None else rollout[0].float().cpu().numpy(),
            {},
            [] if self.class_maps is None else self.class_maps(images),
        )
        last = range(max(0, len(maps) - 2), len(maps))
        return look, {f"stage {index + 1}": maps[index][0].float().cpu().numpy() for index in last}

    def _pixels(self, data: bytes) -> Tensor:
        """float32 [C, H, W] of 0 to 255, both sides whole multiples of the largest stride.
        Raises BadImage.
        """
        channels = self.encoder.in_channels
        pixels = torch.from_numpy(as_channels(open_image(data, channels=channels).decode(1), channels))
        height, width = pixels.shape[1:]
        side = min(height, width)
        if self.square:
            top, left = (height - side) // 2, (width - side) // 2
            pixels = pixels[:, top : top + side, left : left + side]
        step = self.encoder.strides[-1]
        target = [max(1, round(length * self.size / side / step)) * step for length in pixels.shape[1:]]
        resized = F.interpolate(
            pixels[None].float(), target, mode="bilinear", antialias=True, align_corners=False
        )
        return resized[0].clamp(0, 255)


def open_explainer(
    url: str, *, size: int | None = None, square: bool = False, queries: str = "all"
) -> Explainer:
    """The explainer of an encoder folder; `size` is that of the encoder's training unless given."""
    config = read_encoder_config(url)
    return Explainer(
        load_encoder(url),
        size=size or config.input_size or DEFAULT_SIZE,
        mean=config.mean,
        std=config.std,
        square=square,
        queries=queries,
    )


def explain(
    encoder_url: str,
    images: str | Sequence[str],
    *,
    limit: int = 16,
    size: int | None = None,
    square: bool = False,
    queries: str = "all",
    image_column: str = "image",
) -> list[Explanation]:
    """Explains what an encoder folder makes of images: paths, folders, globs, Parquet URLs. See `Explainer`.

    Raises UserError for folders that hold no encoder and sources that hold no image.
    """
    explainer = open_explainer(encoder_url, size=size, square=square, queries=queries)
    return explainer.explain(pick_images(images, limit=limit, image_column=image_column))
