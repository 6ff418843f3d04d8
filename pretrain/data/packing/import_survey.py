"""A look at a sample of a source's boxes before all are packed:
what their numbers mean, and on which side of EXIF they lie.
"""

from __future__ import annotations

from itertools import islice

import numpy as np

from cluster.errors import UserError
from pretrain.data.images.decode import BadImage, image_frame
from pretrain.data.images.geometry import BoxCheck, Frame, Size, customs
from pretrain.data.packing.sources import Record, Records
from pretrain.data.packing.sources.parallel import in_order

SAMPLE = 256  # images; in the order of packing, which is mixed


def look_at_boxes(
    records: Records,
    src: str,
    *,
    num_threads: int,
    option: str | None = "--boxes",
    check_format: bool = True,
) -> bool | None:
    """Whether boxes were drawn on images as stored (see `upright_boxes`),
    by a sample of those that have some.

    Args:
        records: of the source, in the order of packing.
        src: named in errors.
        num_threads: that read.
        option: that says what numbers mean; None where the kind of source has none.
        check_format: False where the user has said what numbers mean.

    Raises UserError where nearly all boxes are fractions of the sides, or corners in place of sizes.
    """
    with_boxes = (
        record
        for record in (records if records.knows("objects") else ())
        if record.objects and record.objects.bbox and record.problem is None
    )
    sample = list(islice((record for record in with_boxes if not record.relative_boxes), SAMPLE))
    if not sample:
        return None
    box_check = BoxCheck()
    frames: list[tuple[Frame, Size]] = []
    for record, frame in zip(sample, in_order(_frame_of, sample, num_threads), strict=True):
        if frame is None or record.objects is None:
            continue
        if record.frame is not None:
            frames.append((frame, record.frame))
        xyxy_N4 = np.array([(x, y, x + w, y + h) for x, y, w, h in record.objects.bbox])
        box_check.add(xyxy_N4, record.frame or frame.upright)
    if check_format and (complaint := box_check.complaint(f"the boxes of {src}", option or "")) is not None:
        raise UserError(
            complaint if option else f"{complaint}; they must be left, top, width and height in pixels"
        )
    return customs(frames)


def _frame_of(record: Record) -> Frame | None:
    """How the image lies in its file; None where it cannot be read, which packing finds out."""
    try:
        return Frame(*image_frame(record.read()))
    except (UserError, ValueError, BadImage):
        return None
