"""Windows onto images, and boxes that follow them:
what a box frames in the image it frames on the canvas.
"""

import io

import numpy as np
import pytest
from PIL import Image

from finetune.tasks.detection.views import (
    BoxViews,
    Letterbox,
    boxes_in_image,
    boxes_on_canvas,
    image_on_canvas,
)
from pretrain.data.views.recipes import ViewSpec
from tests.finetune.shapes import image

MEAN = (0.5, 0.4, 0.3)
BOX = np.array([[30, 10, 70, 40]], np.float32)  # of 120 x 80 pixels


def marked(size=(120, 80)):
    """A black image whose box is white."""
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), tuple(int(edge) for edge in BOX[0]))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def views(seed=0, *, flip=0.5, flip_vertical=0.5, size=64, scale=(0.4, 1.6)):
    spec = ViewSpec(size=size, flip=flip, jitter=0.0, grey=0.0, blur=0.0)
    return BoxViews(spec, scale=scale, flip_vertical=flip_vertical, mean=MEAN, seed=seed)


def filled(transform, num, data, passes=0):
    filling = transform.begin(np.full(num, passes), np.arange(num))
    for index in range(num):
        filling.fill(index, data)
    return filling


def frame(canvas_CSS):
    """The white part of a canvas, as a box."""
    rows, columns = (np.flatnonzero((canvas_CSS > 250).all(0).any(axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def test_boxes_follow_zooms_crops_and_flips():
    filling = filled(views(), 200, marked())
    kinds, checked = set(), 0
    for canvas, geometry in zip(filling.arrays[0], filling.geometry_VB5.swapaxes(0, 1), strict=True):
        boxes, keep = boxes_on_canvas(BOX, geometry, 64, min_visible=0.3)
        side = geometry[0, 2] - geometry[0, 0]
        kinds.add((int(geometry[0, 4]), side > 120))
        if keep[0]:
            # white pixels lie at least a pixel inside of the box: the border is mixed with black
            assert np.abs(frame(canvas) - boxes[0]).max() <= 1.6
            checked += 1
    assert kinds == {(mirrored, out) for mirrored in range(4) for out in (True, False)} and checked > 120


def test_what_lies_beyond_the_image_has_the_mean_colour():
    filling = filled(views(scale=(0.5, 0.5), flip=0.0, flip_vertical=0.0), 20, marked())
    fill = np.round(np.array(MEAN) * 255)
    for canvas, geometry in zip(filling.arrays[0], filling.geometry_VB5.swapaxes(0, 1), strict=True):
        left, top, right, _, _ = geometry[0]
        edges = -np.array([left, top]) * 64 / (right - left)
        inside = np.zeros((64, 64), bool)
        (x, y), (w, h) = np.ceil(edges - 0.5).astype(int), (32, 21)
        inside[y + 1 : y + h, x + 1 : x + w - 1] = True
        outside = np.ones((64, 64), bool)
        outside[y : y + h + 1, x : x + w + 1] = False
        assert (canvas[:, outside] == fill[:, None]).all()
        assert np.isin(canvas[:, inside], fill.astype(np.uint8)[:, None], invert=True).mean() > 0.95


def test_a_box_that_is_mostly_cut_off_is_dropped():
    geometry = np.zeros((2, 5), np.float32)
    geometry[0, :4], geometry[1, 2:4] = (60, 0, 140, 80), (120, 80)
    boxes, keep = boxes_on_canvas(BOX, geometry, 80, min_visible=0.3)
    assert boxes[0].tolist() == [0, 10, 10, 40] and not keep[0]  # a quarter of it is seen
    assert boxes_on_canvas(BOX, geometry, 80, min_visible=0.2)[1][0]
    geometry[0, :4] = (69.5, 0, 149.5, 80)
    assert not boxes_on_canvas(BOX, geometry, 80)[1][0]  # half a pixel


def test_what_is_drawn_depends_on_seed_pass_and_row_alone():
    data = image(3)[0]
    whole = filled(views(), 6, data, passes=2)
    one = views().begin(np.array([2]), np.array([4]))
    one.fill(0, data)
    assert (one.arrays[0][0] == whole.arrays[0][4]).all()
    assert (one.geometry_VB5[:, 0] == whole.geometry_VB5[:, 4]).all()
    for other in (filled(views(seed=1), 6, data, passes=2), filled(views(), 6, data, passes=3)):
        assert (other.geometry_VB5[0] != whole.geometry_VB5[0]).any(1).all()


def test_sizes_are_spread_evenly_between_zooming_out_and_in():
    filling = filled(views(scale=(0.5, 2.0)), 1000, marked())
    scale = 120 / (filling.geometry_VB5[0, :, 2] - filling.geometry_VB5[0, :, 0])
    assert 0.5 <= scale.min() < 0.52 and 1.9 < scale.max() <= 2.001
    assert (scale < 1).mean() == pytest.approx(0.5, abs=0.05)
    larger = scale < 1  # the whole image is then on the canvas
    left, top = filling.geometry_VB5[0, :, 0], filling.geometry_VB5[0, :, 1]
    assert (left[larger] <= 0).all() and (left[~larger] >= 0).all() and (top[larger] <= 0).all()


@pytest.mark.parametrize("size", [(120, 80), (80, 120), (33, 97), (200, 20), (64, 64), (1, 50)])
def test_letterboxing_keeps_the_aspect_ratio_and_maps_back(size):
    buffer = io.BytesIO()
    Image.new("RGB", size, (255, 255, 255)).save(buffer, "PNG")
    filling = filled(Letterbox(64, mean=MEAN), 1, buffer.getvalue())
    geometry = filling.geometry_VB5[:, 0]
    height, width = image_on_canvas(geometry, 64)
    assert height / width == pytest.approx(size[1] / size[0]) and max(height, width) == pytest.approx(64)
    seen = (filling.arrays[0][0] == 255).all(0)
    assert seen.any(1).sum() == pytest.approx(height, abs=1) and seen.any(0).sum() == pytest.approx(
        width, abs=1
    )
    boxes = np.array([[0, 0, *size], [size[0] * 0.3, 0, size[0] * 0.7, size[1] * 0.6]], np.float32)
    there, _ = boxes_on_canvas(boxes, geometry, 64)
    assert np.abs(boxes_in_image(there, geometry, 64) - boxes).max() < 1e-4
    beyond = boxes_in_image(np.array([[0, 0, 64, 64]], np.float32), geometry, 64)
    assert beyond[0].tolist() == pytest.approx([0, 0, *size])
