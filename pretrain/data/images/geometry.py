"""Boxes as geometry: from the image that they were drawn on to the pixels of the image as it is decoded,
the right way up.

A box belongs to a frame: a size and an orientation. Annotation files record the size, if at all; the
orientation is that of the file as it is stored, where a program did not mind EXIF, or that of the upright
image. Width and height tell which it was for images that lie on their side; for the others the set's images
on their side do, as far as there are any.

The rules of what numbers mean, one for import, `check` and fine-tuning, are `BoxCheck`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Box = tuple[float, float, float, float]  # left, top, width, height
Size = tuple[float, float]  # width, height

NUM_FOR_HINT = 20  # boxes, before anything is said about corners and sizes
# of boxes that do not fit, as they are read and as they should be read
WRONG_FRACTION, RIGHT_FRACTION = 0.1, 0.02


class WrongFrame(Exception):
    """Boxes that cannot be brought to their image; the text says why."""


@dataclass(frozen=True, slots=True)
class Frame:
    """How an image lies in its file: (width, height) as stored,
    and the EXIF orientation 1 to 8 that brings it upright.
    """

    stored: Size
    orientation: int = 1

    @property
    def upright(self) -> Size:
        """(width, height) of the image as it is decoded."""
        width, height = self.stored
        return (height, width) if self.orientation >= 5 else (width, height)


def upright_boxes(
    boxes: Sequence[Box],
    frame: Frame,
    *,
    drawn_on: Size | None,
    relative: bool = False,
    on_stored: bool | None = None,
) -> list[Box]:
    """Boxes in pixels of the upright image.

    Args:
        boxes: in pixels of the image they were drawn on, or in fractions of its sides.
        frame: of the file.
        drawn_on: (width, height) that the source records for the image; None where it does not.
        relative: the boxes are fractions. These are taken as those of the upright image where no size is
            recorded, as the trainers that read such files have it; boxes in pixels as well, unless the other
            images say otherwise.
        on_stored: whether the other images of the set say that boxes were drawn on the pixels as stored
            (True), on upright images (False), or nothing (None).

    Raises WrongFrame where the recorded size is neither that of the file nor a scaled one,
    or nothing tells how the image lay.
    """
    width, height = frame.upright
    if drawn_on is None and on_stored and not relative:
        drawn_on = frame.stored
    if drawn_on is None:
        return [_times(box, width, height) for box in boxes] if relative else list(boxes)
    if relative:
        boxes = [_times(box, *drawn_on) for box in boxes]
    fits_upright = scale_to(drawn_on, frame.upright)
    fits_stored = scale_to(drawn_on, frame.stored) if frame.orientation != 1 else None
    turned = False
    if fits_upright is not None and fits_stored is not None:
        exact_upright, exact_stored = drawn_on == frame.upright, drawn_on == frame.stored
        if exact_upright == exact_stored:
            turned = _turned_by_custom(frame, on_stored)
        else:
            turned = exact_stored
    elif fits_stored is not None:
        turned = True
    elif fits_upright is None:
        raise WrongFrame(
            f"its boxes were drawn on an image of {drawn_on[0]:g} x {drawn_on[1]:g}, but the image has "
            f"{width:g} x {height:g} "
            "pixels, which is not the same shape scaled"
        )
    scale = fits_stored if turned else fits_upright
    assert scale is not None
    scaled = [_times(box, *scale) for box in boxes] if scale != (1.0, 1.0) else list(boxes)
    return [turn(box, frame) for box in scaled] if turned else scaled


def _turned_by_custom(frame: Frame, on_stored: bool | None) -> bool:
    """Whether boxes lie on the stored pixels where the size is the same both ways.
    Raises WrongFrame where nothing tells.
    """
    is_square = frame.orientation >= 5
    if on_stored is None:
        raise WrongFrame(
            f"EXIF turns it (orientation {frame.orientation}), and nothing in the source says whether its "
            "boxes were rotated too"
        )
    if on_stored and is_square:
        raise WrongFrame(
            "EXIF turns this square image; boxes of others were drawn on the pixels as stored, and nothing "
            "says whether its own were"
        )
    return bool(on_stored)


def scale_to(size: Size, target: Size) -> tuple[float, float] | None:
    """The factors (across, down) by which an image of `size` became one of `target`
    with its proportions kept; else None.

    The sides of a scaled image are rounded, so that each may be a pixel off.
    """
    if size == target:
        return 1.0, 1.0
    across, down = target[0] / size[0], target[1] / size[1]
    factor = across if target[0] >= target[1] else down
    slack = 1.0 + 0.5 * factor
    if abs(size[0] * factor - target[0]) > slack or abs(size[1] * factor - target[1]) > slack:
        return None
    if min(target) * 4 < 3 * slack:  # of tiny images everything would fit
        return None
    return across, down


def turn(box: Box, frame: Frame) -> Box:
    """A box on the stored pixels as it lies on the upright image."""
    left, top, width, height = box
    right_of = frame.stored[0] - left - width
    below = frame.stored[1] - top - height
    return {
        1: (left, top, width, height),
        2: (right_of, top, width, height),
        3: (right_of, below, width, height),
        4: (left, below, width, height),
        5: (top, left, height, width),
        6: (below, left, height, width),
        7: (below, right_of, height, width),
        8: (top, right_of, height, width),
    }[frame.orientation]


def _times(box: Box, across: float, down: float) -> Box:
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def customs(frames: Iterable[tuple[Frame, Size]]) -> bool | None:
    """Whether boxes of a set were drawn on stored pixels,
    by images on their side and the sizes recorded for them.

    True or False where all of them agree, None where there are none or they differ.
    """
    seen: set[bool] = set()
    for frame, drawn_on in frames:
        if frame.orientation < 5 or frame.stored[0] == frame.stored[1]:
            continue
        fits = scale_to(drawn_on, frame.stored), scale_to(drawn_on, frame.upright)
        if (fits[0] is None) != (fits[1] is None):
            seen.add(fits[0] is not None)
    return seen.pop() if len(seen) == 1 else None


@dataclass
class BoxCheck:
    """Finds out over many boxes whether their four numbers mean something else than they are read as.

    Args:
        read_as: `xywh` or `xyxy`.
    """

    read_as: str = "xywh"
    num_boxes: int = 0
    outside: int = 0
    flat: int = 0
    misfits: int = 0
    misfits_other: int = 0
    within_one: int = 0
    within_two: int = 0
    whole_numbers: int = 0

    def add(self, xyxy_N4: np.ndarray, size: Size) -> None:
        """Counts the boxes of an image of this (width, height):
        corners in pixels, read as `read_as` says.
        """
        if not len(xyxy_N4):
            return
        corners_N4 = np.asarray(xyxy_N4, dtype=np.float64)
        # read the other way round: four numbers that are corners, or that are not
        sign = -1 if self.read_as == "xywh" else 1
        other_N4 = corners_N4 + sign * np.pad(corners_N4[:, :2], ((0, 0), (2, 0)))
        outside_N, flat_N = beyond(corners_N4, size), _flat(corners_N4)
        self.num_boxes += len(corners_N4)
        self.outside += int(outside_N.sum())
        self.flat += int(flat_N.sum())
        self.misfits += int((outside_N | flat_N).sum())
        self.misfits_other += int((beyond(other_N4, size) | _flat(other_N4)).sum())
        if min(size) > 4:
            numbers_N4 = corners_N4 if self.read_as == "xyxy" else other_N4
            self.within_one += int((np.abs(numbers_N4) <= 1.001).all(axis=1).sum())
            self.within_two += int((np.abs(corners_N4) <= 2).all(axis=1).sum())
            self.whole_numbers += int((numbers_N4 == np.round(numbers_N4)).all(axis=1).sum())

    @property
    def look_like_fractions(self) -> bool:
        """Whether nearly all boxes lie within a pixel or two of the corner: fractions of the sides."""
        if not self.num_boxes:
            return False
        if self.num_boxes >= NUM_FOR_HINT:
            return self.within_two > (1 - RIGHT_FRACTION) * self.num_boxes
        return self.within_one == self.num_boxes and self.whole_numbers < self.num_boxes

    @property
    def better_read_as(self) -> str | None:
        """The other reading, where boxes fit their images by it and not as they are read; else None."""
        if self.num_boxes < NUM_FOR_HINT:
            return None
        if (
            self.misfits > WRONG_FRACTION * self.num_boxes
            and self.misfits_other < RIGHT_FRACTION * self.num_boxes
        ):
            return {"xywh": "xyxy", "xyxy": "xywh"}[self.read_as]
        return None

    def complaint(self, what: str, option: str = "") -> str | None:
        """What is wrong with the boxes of `what`, and the option or setting that mends it;
        None where nothing is.
        """
        if self.look_like_fractions:
            reads = "; --boxes fractions reads them" if option == "--boxes" else "; they must be in pixels"
            return f"{what} look like fractions of the image's sides{reads}"
        if (other := self.better_read_as) is not None:
            try_it = f"; try {option}{'=' if '.' in option else ' '}{other}" if option else ""
            return (
                f"{what}: {self.misfits} of {self.num_boxes} do not fit their images as {self.read_as}, but "
                f"nearly all do as {other}{try_it}"
            )
        return None


def beyond(xyxy_N4: np.ndarray, size: Size, *, tolerance: float = 1.0) -> np.ndarray:
    """bool [N]: reaches more than `tolerance` pixels beyond an image of this size;
    rounding costs many files less.
    """
    ends_4 = np.array([size[0], size[1], size[0], size[1]]) + tolerance
    return np.asarray(np.any((xyxy_N4 < -tolerance) | (xyxy_N4 > ends_4), axis=1))


def _flat(xyxy_N4: np.ndarray) -> np.ndarray:
    left, top, right, bottom = xyxy_N4.T
    return np.asarray((right <= left) | (bottom <= top))
