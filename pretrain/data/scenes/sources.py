"""What the demo's scenes are made of: things cut out of sample photos, and textures to put behind them.

Every image lies inside an installed package (scikit-image, scikit-learn), so nothing is downloaded. A
`Cutout` is an RGBA image whose alpha is the thing's soft outline; a `Texture` is a grey or coloured image at
several scales to crop from. Where a class has many samples (coins, faces, handwriting) some
of them are kept for validation alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import skimage
import sklearn.datasets
from PIL import Image, ImageDraw, ImageFilter
from skimage import filters, measure, morphology, segmentation

from cluster.errors import UserError

CLASSES = ("cat", "coin", "cup", "digit", "face", "flower", "horse", "motorcycle", "pagoda", "rocket")
SILHOUETTES = ("digit", "horse")  # known by outline alone; a scene fills them with a texture

FULL_SIDE = 144  # pixels of a cutout's longer side: twice what the largest main object needs
HELD_OUT_FRACTION = 0.25  # of coins, faces and handwriting, seen in validation only
NUM_FACES = 100  # lfw_subset holds 100 faces, then 100 images that are none

Points = Sequence[tuple[float, float]]

# Outlines, traced by hand: x, y in pixels of the photo.
CAT: Points = (
    (38, 0), (30, 80), (42, 118), (40, 140), (55, 185), (95, 225), (140, 250), (180, 275), (225, 283),
    (265, 282), (300, 262), (312, 225), (335, 200), (352, 160), (360, 120), (358, 75), (372, 40), (398, 0),
)  # fmt: skip
CUP: Points = (
    (173, 105), (180, 70), (205, 40), (245, 22), (290, 18), (340, 28), (380, 52), (405, 85), (408, 115),
    (400, 160), (385, 195), (372, 225), (345, 240), (320, 245), (318, 258), (300, 280), (270, 284),
    (250, 290), (225, 305), (200, 300), (196, 280), (203, 258), (218, 235), (200, 215), (182, 170),
)  # fmt: skip
SAUCER = (92, 62, 478, 388)  # the ellipse's box
FACE: Points = (
    (232, 16), (262, 22), (285, 38), (298, 65), (301, 85), (296, 108), (280, 127), (266, 136), (262, 155),
    (247, 176), (225, 180), (205, 175), (190, 162), (185, 150), (182, 130), (172, 124), (160, 108),
    (155, 90), (153, 70), (160, 55), (185, 40), (205, 24),
)  # fmt: skip
ROCKET: Points = (
    (311, 150), (313, 140), (318, 131), (323, 126), (328, 130), (333, 142), (334, 176), (336, 182),
    (335, 270), (309, 270), (309, 182), (311, 176),
)  # fmt: skip
SHUTTLE: Points = (
    (408, 0), (420, 0), (432, 20), (437, 45), (441, 42), (446, 38), (452, 55), (455, 70), (455, 205),
    (456, 225), (455, 233), (432, 236), (425, 245), (408, 250), (395, 243), (388, 220), (378, 230),
    (355, 230), (354, 222), (358, 205), (378, 182), (377, 115), (381, 105), (380, 60), (388, 42), (396, 55),
    (396, 30), (402, 10),
)  # fmt: skip
MOTORCYCLE: Points = (
    (91, 200), (110, 196), (140, 200), (150, 208), (140, 170), (143, 150), (155, 145), (165, 160),
    (200, 166), (245, 170), (260, 180), (300, 195), (345, 190), (358, 195), (405, 168), (385, 162),
    (358, 174), (356, 168), (385, 145), (400, 130), (420, 122), (440, 135), (460, 145), (475, 130),
    (490, 112), (494, 82), (502, 82), (540, 97), (543, 103), (532, 108), (545, 125), (560, 140), (562, 160),
    (550, 185), (552, 200), (566, 225), (580, 258), (600, 265), (630, 285), (645, 300), (660, 320),
    (675, 350), (684, 390), (678, 430), (660, 448), (640, 452), (610, 445), (580, 430), (550, 400),
    (530, 370), (515, 330), (505, 328), (508, 300), (520, 285), (525, 272), (505, 235), (480, 240),
    (478, 300), (470, 330), (450, 360), (425, 378), (390, 378), (340, 372), (338, 410), (342, 432),
    (325, 434), (328, 380), (300, 362), (275, 370), (255, 385), (230, 398), (200, 400), (170, 388),
    (145, 365), (128, 335), (122, 300), (128, 270), (140, 250), (115, 245), (105, 240), (110, 225),
    (95, 220),
)  # fmt: skip
PAGODA: Points = (
    (196, 30), (214, 30), (214, 42), (216, 58), (218, 62), (235, 80), (262, 95), (280, 105), (300, 112),
    (320, 122), (318, 128), (300, 138), (294, 142), (295, 158), (300, 163), (330, 172), (328, 180),
    (318, 185), (320, 228), (328, 230), (327, 240), (335, 245), (351, 252), (348, 258), (340, 270),
    (342, 305), (348, 308), (345, 318), (368, 332), (360, 340), (365, 352), (330, 372), (300, 388),
    (215, 388), (200, 372), (180, 355), (150, 335), (80, 335), (74, 332), (76, 318), (80, 312), (82, 282),
    (65, 275), (63, 262), (95, 240), (93, 230), (98, 225), (98, 190), (84, 183), (84, 172), (100, 165),
    (122, 158), (121, 142), (110, 140), (94, 130), (96, 108), (120, 102), (150, 95), (180, 80), (192, 65),
    (194, 58), (194, 45),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Cutout:
    """A thing on a transparent ground."""

    kind: str
    image: Image.Image

    @cached_property
    def levels(self) -> list[Image.Image]:
        """The image at falling sizes, half an octave apart,
        so that a small copy is not sampled too coarsely.
        """
        longest = max(self.image.size)
        sizes = [longest * 2 ** (-step / 2) for step in range(9) if longest * 2 ** (-step / 2) > 12]
        shapes = [[max(2, round(side * size / longest)) for side in self.image.size] for size in sizes]
        return [self.image.resize((width, height), Image.Resampling.LANCZOS) for width, height in shapes]

    @cached_property
    def outline_N2(self) -> np.ndarray:
        """Points on the outline, x and y from -1 to 1 along the image's sides."""
        mask = np.asarray(self.image.getchannel("A")) >= 128
        inner = np.pad(mask, 1)
        inner = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        rows, columns = np.nonzero(mask & ~inner)
        return (np.stack([columns, rows], axis=1) + 0.5) / np.asarray(self.image.size) * 2 - 1


@dataclass(frozen=True, eq=False)
class Texture:
    """What lies behind a scene: images of falling scale, each at least a scene large,
    and two ways to name it.
    """

    name: str
    phrases: tuple[str, str]
    scales: list[np.ndarray]


def _photo(name: str) -> Image.Image:
    """A sample photo. Raises UserError when the installed package does
    not hold it (nothing is downloaded).
    """
    folders = [
        os.path.join(os.path.dirname(skimage.__file__), "data"),
        os.path.join(os.path.dirname(sklearn.datasets.__file__), "images"),
    ]
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            with Image.open(path) as image:
                return image.convert("RGB")
    raise UserError(
        f"the demo's photo {name!r} is not in {' or '.join(folders)}; reinstall scikit-image and "
        "scikit-learn"
    )


def _cut(kind: str, image: Image.Image, mask: Image.Image) -> Cutout:
    """Cuts along a mask, scaled to FULL_SIDE. The colours around the mask stay,
    so that soft edges get no dark rim.
    """
    box = mask.getbbox()
    assert box, kind
    scale = FULL_SIDE / max(box[2] - box[0], box[3] - box[1])
    size = (round((box[2] - box[0]) * scale), round((box[3] - box[1]) * scale))
    cut = image.crop(box).resize(size, Image.Resampling.BICUBIC)
    cut.putalpha(mask.crop(box).resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(0.8)))
    return Cutout(kind, cut)


def _drawn(
    image: Image.Image, points: Points, ellipse: tuple[int, int, int, int] | None = None
) -> Image.Image:
    mask = Image.new("L", image.size)
    pen = ImageDraw.Draw(mask)
    if ellipse:
        pen.ellipse(ellipse, fill=255)
    pen.polygon([(float(x), float(y)) for x, y in points], fill=255)
    return mask


def _mask(inside: np.ndarray) -> Image.Image:
    return Image.fromarray(inside.astype(np.uint8) * 255)


def _flower(image: Image.Image) -> Cutout:
    """The large blossom: the largest region that is much more red than blue."""
    red, _, blue = np.moveaxis(np.asarray(image).astype(int), 2, 0)
    regions = measure.label((red - blue > 40) & (red > 110))
    largest = 1 + int(np.argmax(np.bincount(regions.ravel())[1:]))
    return _cut("flower", image, _mask(morphology.convex_hull_image(regions == largest)))


def _coins(image: Image.Image) -> list[Cutout]:
    """The coins of the museum tray, by the watershed of scikit-image's own tutorial;
    a coin is its region's hull.
    """
    grey = np.asarray(image.convert("L"))
    markers = np.where(grey < 30, 1, np.where(grey > 150, 2, 0))
    regions = measure.label(segmentation.watershed(filters.sobel(grey), markers) == 2)
    coins = []
    for region in measure.regionprops(regions):
        if region.area >= 400:  # smaller ones are specks of dust
            inside = morphology.convex_hull_image(regions == region.label)
            coins.append(_cut("coin", image, _mask(inside)))
    return coins


def _small_faces() -> list[Cutout]:
    """Faces of 25 x 25 pixels, cut to an oval."""
    faces = np.load(os.path.join(os.path.dirname(skimage.__file__), "data", "lfw_subset.npy"))[:NUM_FACES]
    cutouts = []
    for face in faces:
        image = Image.fromarray(np.round(face * 255).astype(np.uint8)).resize(
            (200, 200), Image.Resampling.BICUBIC
        )
        mask = Image.new("L", image.size)
        ImageDraw.Draw(mask).ellipse((14, 2, 186, 198), fill=255)
        cutouts.append(_cut("face", image.convert("RGB"), mask))
    return cutouts


def _digits() -> list[Cutout]:
    """Handwritten digits of 8 x 8 pixels: the ink's outline at a higher resolution, white inside."""
    return [_digit(image) for image in sklearn.datasets.load_digits().images]


def _digit(image_HW: np.ndarray) -> Cutout:
    large = Image.fromarray(np.pad(image_HW, 1).astype(np.float32)).resize(
        (80, 80), Image.Resampling.BICUBIC
    )
    # of 16 grey levels: a clean edge where the pen pressed
    ink = np.clip((np.asarray(large) - 5.0) / 3.0, 0, 1)
    alpha = Image.fromarray(np.round(ink * 255).astype(np.uint8))
    image = Image.new("RGB", alpha.size, "white")
    image.putalpha(alpha)
    return Cutout("digit", image.crop(alpha.getbbox()))


def _horse(image: Image.Image) -> Cutout:
    inside = np.asarray(image.convert("L")) < 128
    return _cut("horse", Image.new("RGB", image.size, "white"), _mask(inside))


@cache
def all_cutouts() -> dict[str, list[Cutout]]:
    """Every cutout by class."""
    coffee, astronaut = _photo("coffee.png"), _photo("astronaut.png")
    cat, rocket, motorcycle, pagoda = map(
        _photo, ("chelsea.png", "rocket.jpg", "motorcycle_left.png", "china.jpg")
    )
    return {
        "cat": [_cut("cat", cat, _drawn(cat, CAT))],
        "coin": _coins(_photo("coins.png")),
        "cup": [_cut("cup", coffee, _drawn(coffee, CUP)), _cut("cup", coffee, _drawn(coffee, CUP, SAUCER))],
        "digit": _digits(),
        "face": [_cut("face", astronaut, _drawn(astronaut, FACE)), *_small_faces()],
        "flower": [_flower(_photo("flower.jpg"))],
        "horse": [_horse(_photo("horse.png"))],
        "motorcycle": [_cut("motorcycle", motorcycle, _drawn(motorcycle, MOTORCYCLE))],
        "pagoda": [_cut("pagoda", pagoda, _drawn(pagoda, PAGODA))],
        "rocket": [
            _cut("rocket", rocket, _drawn(rocket, ROCKET)),
            _cut("rocket", astronaut, _drawn(astronaut, SHUTTLE)),
        ],
    }


def cutouts_of(kind: str, *, held_out: bool) -> list[Cutout]:
    """The cutouts of a class for validation (`held_out`) or training;
    both get all of them where there are few.
    """
    cutouts = all_cutouts()[kind]
    if len(cutouts) < 4:
        return cutouts
    num_training = round(len(cutouts) * (1 - HELD_OUT_FRACTION))
    return cutouts[num_training:] if held_out else cutouts[:num_training]


# name, photo, part of it (left, upper, right, lower), shorter sides in pixels, how a sentence names it
TEXTURES: tuple[tuple[str, str, tuple[int, int, int, int] | None, tuple[int, ...], tuple[str, str]], ...] = (
    ("bricks", "brick.png", None, (130, 190, 280), ("on bricks", "in front of a brick wall")),
    ("grass", "grass.png", None, (130, 200, 320), ("on grass", "in the grass")),
    ("gravel", "gravel.png", None, (130, 200, 320), ("on gravel", "on small stones")),
    (
        "stars",
        "hubble_deep_field.jpg",
        None,
        (200, 320, 480),
        ("among stars", "in front of distant galaxies"),
    ),
    ("page", "page.png", None, (130, 191, 250), ("on a printed page", "over printed text")),
    ("wood", "coffee.png", (485, 0, 600, 400), (104, 130, 170), ("on wood", "on a wooden table")),
)


@cache
def textures() -> list[Texture]:
    """Every texture, in the order of TEXTURES."""
    found = []
    for name, file, part, sides, phrases in TEXTURES:
        image = _photo(file)
        image = image.crop(part) if part else image
        scales = []
        for side in sides:
            width, height = (max(side, round(length * side / min(image.size))) for length in image.size)
            scales.append(np.asarray(image.resize((width, height), Image.Resampling.LANCZOS)))
        found.append(Texture(name, phrases, scales))
    return found
