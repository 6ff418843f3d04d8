"""Views are as strong as lightly's: the same statistics of the finished pixels, over many draws of both.

Each recipe is compared with lightly's transform of that name, by two-sample Kolmogorov-Smirnov tests with
fixed seeds: where crops lie (read back from an image whose colours are its coordinates, with all colour
changes off), and brightness, contrast, colourfulness, hue, greys and sharpness of the views of a photo.
"""

import dataclasses

import lightly.transforms as lightly
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from skimage import data

from pretrain.data.views.random_views import RandomViews
from pretrain.data.views.recipes import RECIPES
from tests.pretrain.test_decode import encoded

NUM, SIZE, LOCAL = 500, 48, 24
# of nearly two hundred tests: one of them would fall below by chance in five
# runs of a hundred with other seeds
MIN_P = 3e-4
OFF = {"cj_prob": 0.0, "random_gray_scale": 0.0, "gaussian_blur": 0.0, "normalize": None}


def simclr(off):
    return lightly.SimCLRTransform(SIZE, **(OFF if off else {"normalize": None}))


def moco_v2(off):
    return lightly.MoCoV2Transform(SIZE, **(OFF if off else {"normalize": None}))


def densecl(off):
    return lightly.DenseCLTransform(SIZE, **(OFF if off else {"normalize": None}))


def vicreg(off):
    return lightly.VICRegTransform(SIZE, **({**OFF, "solarize_prob": 0.0} if off else {"normalize": None}))


def byol(off):
    more = {**OFF, "solarization_prob": 0.0} if off else {"normalize": None}
    return lightly.BYOLTransform(
        lightly.BYOLView1Transform(SIZE, **more), lightly.BYOLView2Transform(SIZE, **more)
    )


def swav(off):
    return lightly.SwaVTransform((SIZE, LOCAL), (2, 1), **(OFF if off else {"normalize": None}))


def dino(off):
    more = (
        {**OFF, "gaussian_blur": (0.0, 0.0, 0.0), "solarization_prob": 0.0} if off else {"normalize": None}
    )
    return lightly.DINOTransform(global_crop_size=SIZE, local_crop_size=LOCAL, n_local_views=1, **more)


THEIRS = {function.__name__: function for function in (simclr, moco_v2, densecl, vicreg, byol, swav, dino)}


# colours take long to tell apart; these two have all kinds of views
SOME_AND_SLOWLY_THE_OTHERS = [
    name if name in ("simclr", "dino") else pytest.param(name, marks=pytest.mark.slow) for name in THEIRS
]


def specs_of(recipe):
    return RECIPES[recipe](
        SIZE, **({"num_local": 1, "local_size": LOCAL} if recipe in ("swav", "dino") else {})
    )


def their_views(transform, image, seed):
    """float [NUM, 3, S, S] in [0, 255] for each view."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    return [
        torch.stack(views).numpy() * 255
        for views in zip(*(transform(image) for _ in range(NUM)), strict=True)
    ]


def our_views(specs, image, seed):
    rows = np.arange(NUM)
    filling = RandomViews(specs, seed=seed).begin(rows * 0, rows)
    data = encoded(image, "PNG")
    for row in rows:
        filling.fill(row, data)
    return [array.astype(np.float32) for array in filling.arrays]


def places(views):
    """Statistics of where crops lie in an image whose red is the column and whose green is the row."""
    red, green = views[:, 0].mean(1), views[:, 1].mean(2)
    size = red.shape[1]
    # from the centre of the first pixel to that of the last, of which there are one less than pixels
    width = np.abs(red[:, -2] - red[:, 1]) * size / (size - 3)
    height = (green[:, -2] - green[:, 1]) * size / (size - 3)
    return {
        "area": width * height,
        "aspect": np.log(width / height),
        "column": red.mean(1),
        "row": green.mean(1),
        "flip": red[:, -1] < red[:, 0],
    }


def looks(views):
    """Statistics of the colours of views."""
    grey = (views * np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]).sum(1)
    chroma = views.max(1) - views.min(1)
    red, green, blue = views.mean((2, 3)).T
    edges = np.abs(np.diff(grey, axis=1)).mean((1, 2)) + np.abs(np.diff(grey, axis=2)).mean((1, 2))
    return {
        "brightness": grey.mean((1, 2)),
        "contrast": grey.std((1, 2)),
        "colourfulness": chroma.mean((1, 2)),
        "hue": np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue),
        "grey": chroma.max((1, 2)) < 3,
        "sharpness": edges / (grey.std((1, 2)) + 1),
    }


def same(ours, theirs, name):
    if ours.dtype == bool:
        table = [[side.sum(), len(side) - side.sum()] for side in (ours, theirs)]
        p = 1.0 if sum(row[0] for row in table) in (0, 2 * len(ours)) else stats.fisher_exact(table).pvalue
    else:
        p = stats.ks_2samp(ours, theirs).pvalue
    assert p > MIN_P, f"{name}: p = {p:.2g}, means {ours.mean():.3f} and {theirs.mean():.3f}"


@pytest.mark.parametrize("recipe", THEIRS)
def test_crops_lie_where_lightly_puts_them(recipe):
    y, x = np.mgrid[:200, :256]
    image = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))
    specs = [
        dataclasses.replace(spec, jitter=0.0, grey=0.0, blur=0.0, solarize=0.0) for spec in specs_of(recipe)
    ]
    pairs = zip(our_views(specs, image, 1), their_views(THEIRS[recipe](True), image, 1), strict=True)
    for view, (ours, theirs) in enumerate(pairs, 1):
        for name, values in places(ours).items():
            same(values, places(theirs)[name], f"view {view} {name}")


@pytest.mark.parametrize("recipe", SOME_AND_SLOWLY_THE_OTHERS)
def test_views_look_as_lightlys(recipe):
    image = Image.fromarray(data.astronaut()).resize((256, 256))
    pairs = zip(
        our_views(specs_of(recipe), image, 2), their_views(THEIRS[recipe](False), image, 2), strict=True
    )
    for view, (ours, theirs) in enumerate(pairs, 1):
        for name, values in looks(ours).items():
            same(values, looks(theirs)[name], f"view {view} {name}")


def test_a_weaker_recipe_would_be_noticed():
    image = Image.fromarray(data.astronaut()).resize((256, 256))
    ours = our_views(RECIPES["simclr"](SIZE, strength=0.8), image, 2)[0]
    theirs = their_views(simclr(False), image, 2)[0]
    pvalues = [stats.ks_2samp(values, looks(theirs)[name]).pvalue for name, values in looks(ours).items()]
    assert min(pvalues) < MIN_P
