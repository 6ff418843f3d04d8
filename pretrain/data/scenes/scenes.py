"""The demo's data set: small scenes with a class, boxes and a true sentence,
made from photos inside installed packages.

write_demo("my/demo", num_images=3000)   # my/demo/train and my/demo/validation
write_demo("my/demo", num_images=800, validation_fraction=0.5,
num_unlabelled=4000)   # and my/demo/unlabelled

A scene is a crop of a texture with one large thing on it, which gives the class, and up to two small ones. A
scene is a pure function of (seed, index), so scenes can be made in any order. Nothing but shape and texture
tells the class: each layer's brightness, contrast and colours are replaced by random ones, and size, place,
rotation, flip, perspective, background and company are drawn without regard to the class.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageFilter

from cluster import storage
from cluster.errors import UserError
from pretrain.data.packing.packing import ShardWriter, schema_of
from pretrain.data.scenes.captions import Box, captions, noun
from pretrain.data.scenes.sources import CLASSES, SILHOUETTES, Cutout, Texture, cutouts_of, textures

SIDE = 96
MIN_IMAGES = 20
VALIDATION_FRACTION = 0.2
SUMMARY, UNFINISHED = "demo.json", "_unfinished.json"
MAIN_SIZE = (0.62, 0.88)  # longer side of the main object's box, as a fraction of the scene's side
SMALL_SIZE = (0.26, 0.36)
MAX_SMALL = 2
MAX_SIZE = 0.9  # of anything
SLIM_FACTOR = 1.2  # slim things (rockets) are made longer, or nothing of them would be seen
MAX_ROTATION_DEGREES = 14.0
MAX_OVERLAP = 0.1  # of a small thing's box with any other box
CONTRAST = (32.0, 54.0)  # standard deviation of a thing's grey levels
GROUND_CONTRAST = (8.0, 18.0)  # calmer than the things on it
TINTS = (8.0, 12.0)  # of what varies within a layer, and of all of it, at most
FILLING_CONTRAST = (10.0, 30.0)  # of a silhouette's texture: a loud one would hide the outline
MARGIN = 8  # pixels around a box that a shadow may darken
JPEG_QUALITY = 90

SCHEMA = schema_of(
    label=pa.string(),
    objects=pa.struct([("bbox", pa.list_(pa.list_(pa.float32()))), ("category", pa.list_(pa.string()))]),
    captions=pa.list_(pa.string()),
)

UNLABELLED_SCHEMA = schema_of()

# streams of random numbers: one for each scene, one for each round of classes
_SCENES, _CLASS_ROUNDS = 0, 1


@dataclass(frozen=True, eq=False)
class Thing:
    """A cutout in a scene. `visible_HW` is where more of it is seen than of anything else."""

    cutout: Cutout
    visible_HW: np.ndarray
    box: Box


@dataclass(frozen=True, eq=False)
class Placement:
    """Where a cutout goes. The homography's image spans -1 to 1; `image_side` is its longer in pixels."""

    cutout: Cutout
    scene_to_image_33: np.ndarray
    image_side: float
    box: Box

    @property
    def window(self) -> Box:
        """The part of the scene that the thing and its shadow can touch."""
        left, top, right, low = self.box
        return (
            max(0, left - MARGIN),
            max(0, top - MARGIN),
            min(SIDE, right + MARGIN),
            min(SIDE, low + MARGIN),
        )


@dataclass(frozen=True, eq=False)
class Scene:
    """A scene before it is encoded. `things[0]` is the main object."""

    image_HW3: np.ndarray
    background: Texture
    things: list[Thing]


def write_demo(
    dest_url: str,
    *,
    num_images: int = 3000,
    validation_fraction: float = VALIDATION_FRACTION,
    num_unlabelled: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes the demo's data set: `train`, `validation`, `unlabelled` when asked for, `demo.json` at last.

    Columns: `image` (JPEG, 96 x 96), `label`, `objects` (COCO boxes in pixels and their categories),
    `captions` (true sentences); in `unlabelled` the image alone, of scenes that are in no other split. The
    same arguments give the same images under the same versions of numpy, pillow and the photos' packages.

    Args:
        dest_url: a folder that is empty, not there yet, or of a call that was cut off.
        num_images: of train and validation together.
        validation_fraction: of them, held out.
        num_unlabelled: further scenes, without labels.
        seed: another seed gives other scenes.
        progress: called with (scenes written, all scenes) now and then.

    Returns the content of `demo.json`: counts, classes and seed.
    Raises UserError when the folder is not empty or an argument is impossible.
    """
    if num_images < MIN_IMAGES:
        raise UserError(f"num_images is {num_images}, but a demo needs at least {MIN_IMAGES}")
    num_validation = round(num_images * validation_fraction)
    if not 0 < num_validation < num_images:
        raise UserError(
            f"validation_fraction is {validation_fraction:g}, but both splits need a scene; 0.2 is usual"
        )
    if num_unlabelled < 0:
        raise UserError(f"num_unlabelled is {num_unlabelled}, but it must be at least 0")
    if not 0 <= seed < 2**64:
        raise UserError(f"seed is {seed}, but it must be from 0 to 2**64 - 1")
    there = storage.names_in(dest_url)
    if UNFINISHED in there:  # of a call that was cut off: what lies there is ours
        storage.remove(dest_url)
    elif there:
        raise UserError(
            f"{dest_url} is not empty (it holds {there[0]!r}); name another folder or empty this one"
        )
    storage.write_json(storage.join(dest_url, UNFINISHED), {})
    num_train, num_scenes = num_images - num_validation, num_images + num_unlabelled
    splits = {
        "train": range(num_train),
        "validation": range(num_train, num_images),
        "unlabelled": range(num_images, num_scenes),
    }
    for split, indices in splits.items():
        if not indices:
            continue
        schema = UNLABELLED_SCHEMA if split == "unlabelled" else SCHEMA
        with ShardWriter(storage.join(dest_url, split), schema) as writer:
            for index in indices:
                row = scene(index, seed, held_out=split == "validation")
                writer.write({name: row[name] for name in schema.names})
                if progress and ((index + 1) % 50 == 0 or index + 1 == num_scenes):
                    progress(index + 1, num_scenes)
    summary = {
        "num_images": num_images,
        "train": num_train,
        "validation": num_validation,
        "unlabelled": num_unlabelled,
        "classes": list(CLASSES),
        "seed": seed,
    }
    storage.write_json(storage.join(dest_url, SUMMARY), summary)
    storage.remove(storage.join(dest_url, UNFINISHED))
    return summary


def scene(index: int, seed: int, *, held_out: bool = False) -> dict[str, Any]:
    """A row of the data set. With `held_out`, coins, faces and handwriting are those of validation."""
    composed = compose(index, seed, held_out=held_out)
    encoded = io.BytesIO()
    Image.fromarray(composed.image_HW3).save(encoded, "JPEG", quality=JPEG_QUALITY)
    boxes = [thing.box for thing in composed.things]
    return {
        "image": {"bytes": encoded.getvalue(), "path": f"{index:06d}.jpg"},
        "label": composed.things[0].cutout.kind,
        "objects": {
            "bbox": [
                [float(x) for x in (left, top, right - left, low - top)] for left, top, right, low in boxes
            ],
            "category": [thing.cutout.kind for thing in composed.things],
        },
        "captions": captions(
            [(noun(thing.cutout.kind), thing.box) for thing in composed.things],
            composed.background.phrases,
        ),
    }


# -- images -------------------------------------------------------------------------------------------------


def compose(index: int, seed: int, *, held_out: bool = False) -> Scene:
    """Paints a scene and says what is where."""
    rng = _generator(seed, _SCENES, index)
    main = main_class(index, seed)
    background = textures()[rng.integers(len(textures()))]
    ground_mean = rng.uniform(60, 195)
    image_HW3 = recoloured(_crop(background, rng), np.ones((SIDE, SIDE)), ground_mean, GROUND_CONTRAST, rng)

    main_placement = _place(_one_of(cutouts_of(main, held_out=held_out), rng), MAIN_SIZE, [], rng)
    assert main_placement, "an empty scene has room for its main object"
    placed = [main_placement]
    others = [kind for kind in CLASSES if kind != main]
    for _ in range(rng.integers(MAX_SMALL + 1)):
        cutout = _one_of(cutouts_of(others[rng.integers(len(others))], held_out=held_out), rng)
        placement = _place(cutout, SMALL_SIZE, [other.box for other in placed], rng)
        placed += [placement] if placement else []

    # the main object lies under the small ones or over them
    order = [*range(1, len(placed)), 0] if rng.random() < 0.5 else list(range(len(placed)))
    alphas: dict[int, np.ndarray] = {}
    for position in order:
        left, top, right, low = placed[position].window
        window = slice(top, low), slice(left, right)
        colour_HW3, alpha_HW = _warp(placed[position])
        contrast = CONTRAST
        if placed[position].cutout.kind in SILHOUETTES:
            contrast = FILLING_CONTRAST
            filling = [texture for texture in textures() if texture is not background]
            colour_HW3 = _crop(filling[rng.integers(len(filling))], rng)[window]
        colour_HW3 = recoloured(colour_HW3, alpha_HW, _mean_apart_from(ground_mean, rng), contrast, rng)
        image_HW3[window] = _paint(image_HW3[window], colour_HW3, alpha_HW, rng)
        for lower in alphas.values():
            lower[window] *= 1 - alpha_HW
        alphas[position] = np.zeros((SIDE, SIDE))
        alphas[position][window] = alpha_HW
    things = []
    for position, placement in enumerate(placed):
        visible_HW = alphas[position] >= 0.5
        things.append(Thing(placement.cutout, visible_HW, tight_box(visible_HW)))
    image_HW3 += rng.uniform(0, 5) * rng.standard_normal(image_HW3.shape, dtype=np.float32)
    return Scene(np.round(np.clip(image_HW3, 0, 255)).astype(np.uint8), background, things)


def main_class(index: int, seed: int) -> str:
    """The class of a scene: each round of ten scenes holds every class once, in random order."""
    order = _generator(seed, _CLASS_ROUNDS, index // len(CLASSES)).permutation(len(CLASSES))
    return CLASSES[order[index % len(CLASSES)]]


def _generator(seed: int, stream: int, index: int) -> np.random.Generator:
    """Random numbers of one scene. The stream is in the counter's highest word, which is never reached."""
    key, counter = np.array([seed, index], dtype=np.uint64), np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _one_of(cutouts: list[Cutout], rng: np.random.Generator) -> Cutout:
    return cutouts[rng.integers(len(cutouts))]


def _crop(texture: Texture, rng: np.random.Generator) -> np.ndarray:
    """A part of a texture at one of its scales, turned by quarters, not mirrored: some hold writing."""
    image = texture.scales[rng.integers(len(texture.scales))]
    top, left = (int(rng.integers(length - SIDE + 1)) for length in image.shape[:2])
    return np.rot90(image[top : top + SIDE, left : left + SIDE], int(rng.integers(4)))


def _place(
    cutout: Cutout, size: tuple[float, float], taken: list[Box], rng: np.random.Generator
) -> Placement | None:
    """Turns, flips, stretches, tilts and scales a cutout, and finds room for it; None when there is none."""
    width, height = cutout.image.size
    angle = np.deg2rad(rng.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES))
    flip = 1.0 if cutout.kind == "digit" else rng.choice([-1.0, 1.0])  # a mirrored seven is no seven
    stretch, shear = np.exp(rng.uniform(-0.15, 0.15)), rng.uniform(-0.15, 0.15)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    shape = np.array([[flip * width * stretch, shear * height, 0], [0, height / stretch, 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, 1, 0], [*rng.uniform(-0.15, 0.15, 2), 1]])
    forward = turn @ shape @ tilt

    points = np.concatenate([cutout.outline_N2, np.ones((len(cutout.outline_N2), 1))], axis=1) @ forward.T
    points = points[:, :2] / points[:, 2:]
    low, high = points.min(axis=0), points.max(axis=0)
    longer = rng.uniform(*size) * SIDE
    if (high - low).min() < 0.5 * (high - low).max():
        longer = min(longer * SLIM_FACTOR, MAX_SIZE * SIDE)
    scale = longer / (high - low).max()
    extent = (high - low) * scale
    for _ in range(24):
        corner = rng.uniform(1, SIDE - 1 - extent)
        box = (*np.floor(corner).astype(int).tolist(), *np.ceil(corner + extent).astype(int).tolist())
        if all(_overlap(box, other) <= MAX_OVERLAP for other in taken):
            move = np.array(
                [[scale, 0, corner[0] - low[0] * scale], [0, scale, corner[1] - low[1] * scale], [0, 0, 1]]
            )
            return Placement(cutout, _inverse(move @ forward), 2 * scale * max(width, height), box)
    return None


def _overlap(box: Box, other: Box) -> float:
    """The fraction of `box` that lies in `other`."""
    width = max(0, min(box[2], other[2]) - max(box[0], other[0]))
    height = max(0, min(box[3], other[3]) - max(box[1], other[1]))
    return width * height / ((box[2] - box[0]) * (box[3] - box[1]))


def _inverse(forward_33: np.ndarray) -> np.ndarray:
    """A homography's inverse, up to a factor; by cross products, for LAPACK's many builds differ."""
    first, second, third = forward_33
    return np.stack([np.cross(second, third), np.cross(third, first), np.cross(first, second)], axis=1)


def _warp(placement: Placement) -> tuple[np.ndarray, np.ndarray]:
    """A cutout as it looks in its window of the scene: colours of 0 to 255 and alpha of 0 to 1."""
    large_enough = [level for level in placement.cutout.levels if max(level.size) >= placement.image_side]
    level = large_enough[-1] if large_enough else placement.cutout.levels[0]
    left, top, right, low = placement.window
    half_width, half_height = level.size[0] / 2, level.size[1] / 2
    to_pixels = np.array([[half_width, 0, half_width], [0, half_height, half_height], [0, 0, 1]])
    to_scene = np.array([[1, 0, left], [0, 1, top], [0, 0, 1]])
    mapping = to_pixels @ placement.scene_to_image_33 @ to_scene
    # rounded, so that processors that differ in a number's last bit agree on the image
    coefficients = np.round(mapping / mapping[2, 2], 9).ravel()[:8].tolist()
    size = (right - left, low - top)
    warped = level.transform(size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)
    pixels = np.asarray(warped, dtype=np.float64)
    return pixels[..., :3], pixels[..., 3] / 255


def _mean_apart_from(ground_mean: float, rng: np.random.Generator) -> float:
    """A brightness apart from the ground's, as often lighter as darker where there is room for both."""
    lighter, darker = ground_mean + rng.uniform(45, 100), ground_mean - rng.uniform(45, 100)
    options = [mean for mean in (lighter, darker) if 25 <= mean <= 230]
    return options[rng.integers(len(options))] if options else (215.0 if ground_mean < 128 else 40.0)


def recoloured(
    colour_HW3: np.ndarray,
    alpha_HW: np.ndarray,
    mean: float,
    contrast: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """Gives a layer a new brightness, contrast and colours, so that only its structure remains.

    Where the photo has colours they are turned by a random angle of hue, half of the time;
    else the layer gets two tones.
    """
    colour = colour_HW3.astype(np.float64)
    weight = alpha_HW / max(alpha_HW.sum(), 1.0)
    grey = colour @ np.array([0.299, 0.587, 0.114])
    grey = grey - (grey * weight).sum()
    grey = np.clip(grey / max(float(np.sqrt((grey**2 * weight).sum())), 2.0), -2.5, 2.5)

    red_cyan = colour[..., 0] - colour[..., 1]
    yellow_blue = (colour[..., 0] + colour[..., 1]) / 2 - colour[..., 2]
    chroma = (red_cyan - (red_cyan * weight).sum()) + 1j * (yellow_blue - (yellow_blue * weight).sum())
    spread = float(np.sqrt((np.abs(chroma) ** 2 * weight).sum()))
    if spread < 4 or rng.random() < 0.5:
        chroma, spread = grey + 0j, 1.0
    turned = chroma / spread * np.exp(1j * rng.uniform(0, 2 * np.pi)) * rng.uniform(0, TINTS[0])
    turned = turned + np.exp(1j * rng.uniform(0, 2 * np.pi)) * rng.uniform(0, TINTS[1])

    tones = mean + grey * rng.uniform(*contrast)
    return np.stack(
        [tones + turned.real, tones - turned.real / 2 + turned.imag / 2, tones - turned.imag], axis=2
    )


def _paint(
    ground_HW3: np.ndarray, colour_HW3: np.ndarray, alpha_HW: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Lays a layer over the image, with a soft shadow under it."""
    solid = Image.fromarray(np.round(alpha_HW * 255).astype(np.uint8))
    shadow = np.asarray(solid.filter(ImageFilter.GaussianBlur(3)), dtype=np.float64) / 255
    shadow = np.roll(shadow, tuple(rng.integers(-2, 3, 2)), axis=(0, 1)) * rng.uniform(0, 0.6)
    shaded_HW3 = ground_HW3 * (1 - shadow[..., None])
    return shaded_HW3 * (1 - alpha_HW[..., None]) + colour_HW3 * alpha_HW[..., None]


def tight_box(mask_HW: np.ndarray) -> Box:
    """The smallest box around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
