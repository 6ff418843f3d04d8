"""Where in an image a classifier sees a class: heat map, regions, boxes, learnt from labels of images."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from skimage.measure import label, regionprops
from torch import Tensor

from cluster.errors import UserError, choose
from finetune.image_inputs import pixels_of
from finetune.tasks.base import Predictor
from finetune.tasks.classification.model import Classifier
from finetune.tasks.classification.predictor import ImageClassifier
from pretrain.data.views.augment import normalised

WINDOWS_AT_ONCE = 64


@dataclass(frozen=True)
class Region:
    """A position where the class is seen.

    Attributes:
        box: left, top, right and bottom in the image's pixels.
        score: the class's probability times the region's mean fraction of the strongest evidence, in [0, 1].
        area_fraction: of the image.
    """

    box: tuple[float, float, float, float]
    score: float
    area_fraction: float


@dataclass(frozen=True)
class Localization:
    """Where a class is seen: its probability, regions, surest first, heat map float32 [H, W] in [0, 1]."""

    label: str
    probability: float
    regions: list[Region]
    heat_HW: np.ndarray


class Localizer:
    """Turns class evidence into regions.

    The evidence of a position is its logit for the class less the mean over classes, of the whole image in
    one pass; the mean of the logits over positions is what a classifier predicts by (class activation maps,
    Zhou et al., https://arxiv.org/abs/1512.04150). At a `size` above the model's image size such a window
    moves over the image, and the evidence of a position is the mean probability of the windows it lies in:
    through attention every position of a map sees all others, so that maps alone would not tell small things
    from their surroundings. Regions are the connected positions with at least `fraction` of the strongest
    evidence; there are none where the class is less likely than `min_probability`.

    Args:
        predictor: a classifier.
        name: of the class.
        size: short side, in pixels, to which images are scaled; by default the model's image size. Small
            things in large images are found at the scale at which the model learnt them.
        fraction, min_probability: see above.

    Raises UserError for a model that is no classifier or does not know the class.
    """

    def __init__(
        self,
        predictor: Predictor,
        name: str,
        *,
        size: int | None = None,
        fraction: float = 0.5,
        min_probability: float = 0.0,
    ) -> None:
        if not isinstance(predictor, ImageClassifier):
            task = predictor.config["task"]
            raise UserError(
                f"--localize needs a classifier, this model is for {task}; its own results say where"
            )
        if predictor.channels != 3:
            raise UserError(
                f"--localize draws on RGB images, this model takes {predictor.channels} channels"
            )
        choose("class", name, predictor.class_names)
        self.predictor = predictor
        self.name = name
        self.fraction = fraction
        self.min_probability = min_probability
        self._index = predictor.class_names.index(name)
        self._size = size or predictor.config["image_size"]

    def localize(self, encoded: bytes) -> Localization:
        """Where the class is in an image. Raises BadImage."""
        return self.localize_pixels(pixels_of(encoded))

    def localize_pixels(self, pixels_HW3: np.ndarray) -> Localization:
        """The same of an image that is decoded, uint8 [H, W, 3]."""
        image = Image.fromarray(pixels_HW3)
        evidence_HW, probability = self._evidence(image)
        heat = np.clip(evidence_HW, 0, None)
        strongest = float(heat.max())
        heat = heat / strongest if strongest > 0 else heat
        whole = np.asarray(
            Image.fromarray(heat.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR),
            np.float32,
        )
        regions = self._regions(whole, probability) if strongest > 0 else []
        return Localization(self.name, probability, regions, whole)

    @torch.no_grad()
    def _evidence(self, image: Image.Image) -> tuple[np.ndarray, float]:
        model, config = cast(Classifier, self.predictor.model), self.predictor.config
        factor = self._size / min(image.size)
        # whole strides, so that positions of the map and of the image correspond
        stride = model.encoder.strides[-1]
        size = tuple(max(stride, round(side * factor / stride) * stride) for side in image.size)
        scaled = np.array(image.resize(cast(tuple[int, int], size), Image.Resampling.BILINEAR))
        image_1CHW = normalised(
            scaled.transpose(2, 0, 1)[None], self.predictor.device, config["mean"], config["std"]
        )
        if self._size > config["image_size"]:
            probability_HW = self._in_windows(image_1CHW, config["image_size"])
            return probability_HW, float(probability_HW.max())
        logits_KHW: Tensor = model.position_logits(image_1CHW)[0]
        probabilities = self.predictor.as_probabilities(logits_KHW.mean((1, 2))[None])[0]
        evidence = logits_KHW[self._index] - logits_KHW.mean(0)
        return evidence.float().cpu().numpy(), float(probabilities[self._index])

    def _in_windows(self, image_1CHW: Tensor, side: int) -> np.ndarray:
        """The mean probability of the windows that each pixel lies in, float32 [H, W]."""
        tops, lefts = (_spread(length, side) for length in image_1CHW.shape[2:])
        corners = [(top, left) for top in tops for left in lefts]
        total_HW, count_HW = (np.zeros(image_1CHW.shape[2:], np.float32) for _ in range(2))
        model = cast(Classifier, self.predictor.model)
        for start in range(0, len(corners), WINDOWS_AT_ONCE):
            part = corners[start : start + WINDOWS_AT_ONCE]
            windows = torch.cat(
                [image_1CHW[:, :, top : top + side, left : left + side] for top, left in part]
            )
            logits_NK = model.position_logits(windows).mean((2, 3))
            probabilities = self.predictor.as_probabilities(logits_NK)[:, self._index].tolist()
            for (top, left), probability in zip(part, probabilities, strict=True):
                position = np.s_[top : top + side, left : left + side]
                total_HW[position] += probability
                count_HW[position] += 1
        return total_HW / count_HW

    def _regions(self, heat_HW: np.ndarray, probability: float) -> list[Region]:
        if probability < self.min_probability:
            return []
        found = []
        for region in regionprops(label(heat_HW >= self.fraction), intensity_image=heat_HW):
            top, left, bottom, right = region.bbox
            score = probability * float(region.intensity_mean)
            found.append(
                Region(
                    (float(left), float(top), float(right), float(bottom)), score, region.area / heat_HW.size
                )
            )
        return sorted(found, key=lambda region: -region.score)


def _spread(length: int, side: int) -> list[int]:
    """Where windows of a side begin: at even distances of about a quarter of it, the last at the end."""
    num = -(-(length - side) // max(1, side // 4)) + 1
    return [int(start) for start in np.linspace(0, length - side, num).round()]


def fields_of(localization: Localization) -> dict[str, Any]:
    """What a localization adds to a record."""
    regions = [
        {"box": list(region.box), "score": region.score, "area_share": region.area_fraction}
        for region in localization.regions
    ]
    return {"localized": localization.label, "probability": localization.probability, "regions": regions}


def heat_png(heat_HW: np.ndarray) -> bytes:
    """A heat map as a grey PNG, 255 for the strongest evidence: for programs, not for people."""
    buffer = io.BytesIO()
    Image.fromarray((255 * heat_HW).round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
