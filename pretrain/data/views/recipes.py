"""Recipes of views: how many, how large, and how strongly each is changed.

The published ones have the defaults of lightly's transforms (torchvision's RandomResizedCrop, flip,
ColorJitter, greyscale, blur, solarize), so results can be compared;
`tests/pretrain/test_strength.py` compares the distributions.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError, choose, nearest

Range = tuple[float, float]


@dataclass(frozen=True)
class ViewSpec:
    """How one view is drawn. Probabilities in [0, 1]; jitter strengths as in torchvision's ColorJitter.

    Args:
        size: side of the square view in pixels.
        crop_scale: smallest and largest fraction of the image's area that a crop may take.
        crop_ratio: smallest and largest ratio of a crop's width to its height.
        flip: probability of a horizontal flip.
        jitter: probability of colour jitter as a whole.
        brightness, contrast, saturation: factors are uniform in [max(0, 1 - x), 1 + x].
        hue: shifts are uniform in [-x, x] of the colour circle, at most 0.5.
        grey: probability of greyscale.
        blur: probability of Gaussian blur, with sigma uniform in `blur_sigma` (pixels of the view).
        solarize: probability of inverting all values from one half up.
        solarize_first: before the blur in place of after it.
        cubic: crops are resampled by a cubic filter in place of a triangle; both are antialiased.
    """

    size: int
    crop_scale: Range = (0.08, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    grey: float = 0.2
    blur: float = 0.5
    blur_sigma: Range = (0.1, 2.0)
    solarize: float = 0.0
    solarize_first: bool = False
    cubic: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"views: size={self.size} is not possible: give 1 or more pixels")
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            given, maximum = getattr(self, name), 1.0 if name == "crop_scale" else float("inf")
            if not (isinstance(given, Sequence) and len(given) == 2 and 0 < given[0] <= given[1] <= maximum):
                limit = " and at most 1" if name == "crop_scale" else ""
                raise UserError(f"views: {name}={given} is not possible: give [low, high], above 0{limit}")
        for name in ("flip", "jitter", "grey", "blur", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"views: {name}={getattr(self, name):g} is not a probability between 0 and 1"
                )
        if not 0 <= self.hue <= 0.5 or min(self.brightness, self.contrast, self.saturation) < 0:
            raise UserError(
                "views: brightness, contrast and saturation must be 0 or more, and hue between 0 and 0.5"
            )


def simclr_views(size: int, *, crop_scale: Range = (0.08, 1.0), strength: float = 1.0) -> list[ViewSpec]:
    """SimCLR's two views (https://arxiv.org/abs/2002.05709, appendix A).

    Images of 32 pixels are not blurred, as in the paper's CIFAR experiments (appendix B.9).
    """
    return [
        _jittered(size, strength, 0.8, 0.8, 0.8, 0.2, crop_scale=crop_scale, blur=0.5 if size > 32 else 0.0)
    ] * 2


def moco_v2_views(size: int, *, crop_scale: Range = (0.2, 1.0), strength: float = 1.0) -> list[ViewSpec]:
    """The two views of MoCo v2 (https://arxiv.org/abs/2003.04297)."""
    return [
        _jittered(size, strength, 0.4, 0.4, 0.4, 0.1, crop_scale=crop_scale, blur=0.5 if size > 32 else 0.0)
    ] * 2


def densecl_views(size: int, *, crop_scale: Range = (0.2, 1.0), strength: float = 1.0) -> list[ViewSpec]:
    """The views of DenseCL (https://arxiv.org/abs/2011.09157), those of MoCo v2;
    `Batch.geometry_VB5` says where they lie.
    """
    return moco_v2_views(size, crop_scale=crop_scale, strength=strength)


def byol_views(size: int, *, crop_scale: Range = (0.08, 1.0), strength: float = 1.0) -> list[ViewSpec]:
    """BYOL's asymmetric pair (https://arxiv.org/abs/2006.07733, table 6):
    one always blurred, the other solarized at times.
    """
    view = _jittered(size, strength, 0.4, 0.4, 0.2, 0.1, crop_scale=crop_scale)
    return [dataclasses.replace(view, blur=1.0), dataclasses.replace(view, blur=0.1, solarize=0.2)]


def vicreg_views(size: int, *, crop_scale: Range = (0.08, 1.0), strength: float = 0.5) -> list[ViewSpec]:
    """The two views of VICReg (https://arxiv.org/abs/2105.04906, appendix C),
    as lightly's VICRegTransform draws them.
    """
    view = _jittered(size, strength, 0.8, 0.8, 0.4, 0.2, crop_scale=crop_scale, blur=0.5)
    return [dataclasses.replace(view, solarize=0.1, solarize_first=True)] * 2


def swav_views(
    size: int,
    *,
    crop_scale: Range = (0.14, 1.0),
    local_scale: Range = (0.05, 0.14),
    local_size: int | None = None,
    num_local: int = 6,
    strength: float = 1.0,
) -> list[ViewSpec]:
    """SwAV's multi-crop (https://arxiv.org/abs/2006.09882):
    two views, then smaller ones of small parts (96 of 224 pixels).
    """
    view = _jittered(size, strength, 0.8, 0.8, 0.8, 0.2, crop_scale=crop_scale, blur=0.5)
    local = dataclasses.replace(view, size=local_size or _local_size(size), crop_scale=local_scale)
    return [view] * 2 + [local] * num_local


def dino_views(
    size: int,
    *,
    crop_scale: Range = (0.4, 1.0),
    local_scale: Range = (0.05, 0.4),
    local_size: int | None = None,
    num_local: int = 6,
    strength: float = 0.5,
) -> list[ViewSpec]:
    """DINO's multi-crop (https://arxiv.org/abs/2104.14294):
    two global views, blurred unlike, and local ones.
    """
    view = _jittered(size, strength, 0.8, 0.8, 0.4, 0.2, crop_scale=crop_scale, cubic=True)
    local = dataclasses.replace(view, size=local_size or _local_size(size), crop_scale=local_scale, blur=0.5)
    first, second = dataclasses.replace(view, blur=1.0), dataclasses.replace(view, blur=0.1, solarize=0.2)
    return [first, second] + [local] * num_local


def distill_views(
    size: int,
    *,
    num_views: int = 1,
    crop_scale: Range = (0.3, 1.0),
    strength: float = 0.4,
    whole_size: int = 0,
) -> list[ViewSpec]:
    """Mildly changed crops for a student: it shall see what the teacher speaks of
    (2104.09124 and 2407.10366 do so, too).

    `whole_size` adds the whole image, unchanged and stretched to a square of this side,
    for a teacher that looks at it.
    """
    view = _jittered(size, strength, 0.8, 0.8, 0.8, 0.2, crop_scale=crop_scale, grey=0.0, blur=0.0)
    whole = ViewSpec(
        whole_size or size,
        crop_scale=(1.0, 1.0),
        crop_ratio=(0.01, 100.0),
        flip=0.0,
        jitter=0.0,
        grey=0.0,
        blur=0.0,
    )
    return [view] * num_views + [whole] * (whole_size > 0)


def weak_views(size: int, *, crop_scale: Range = (0.35, 1.0)) -> list[ViewSpec]:
    """One view with a mild crop and a flip, for training on labels."""
    return [ViewSpec(size=size, crop_scale=crop_scale, jitter=0.0, grey=0.0, blur=0.0)]


def _jittered(
    size: int,
    strength: float,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    **more: Any,
) -> ViewSpec:
    return ViewSpec(
        size=size,
        brightness=brightness * strength,
        contrast=contrast * strength,
        saturation=saturation * strength,
        hue=min(hue * strength, 0.5),
        **more,
    )


def _local_size(size: int) -> int:
    return max(1, round(size * 96 / 224 / 8) * 8)


RECIPES: dict[str, Callable[..., list[ViewSpec]]] = {
    "simclr": simclr_views,
    "moco_v2": moco_v2_views,
    "byol": byol_views,
    "vicreg": vicreg_views,
    "swav": swav_views,
    "dino": dino_views,
    "densecl": densecl_views,
    "distill": distill_views,
    "weak": weak_views,
}


def recipe_views(name: str, size: int, arguments: Mapping[str, Any]) -> list[ViewSpec]:
    """The views of a recipe. Raises UserError for an unknown recipe, or for an argument it does not take."""
    recipe = RECIPES[choose("recipe", name, RECIPES)]
    known = [parameter for parameter in inspect.signature(recipe).parameters if parameter != "size"]
    for argument in arguments:
        if argument not in known:
            words = f"unknown argument {argument!r}{nearest(argument, known)} (known: {', '.join(known)})"
            raise UserError(f"views.arguments of recipe {name}: {words}")
    return recipe(size, **arguments)
