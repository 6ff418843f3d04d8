"""The batched operations equal torchvision's on each image, and what is drawn is drawn as published."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import functional as tv

from pretrain.data import augment
from pretrain.data.augment import apply_colours, draw_colours, finish_views
from pretrain.data.views import ViewSpec, central_box, draw_boxes, simclr_views

IMAGES = torch.rand(8, 3, 24, 20, generator=torch.Generator().manual_seed(0))
FACTORS = torch.linspace(0.2, 1.8, 8)
SHIFTS = torch.linspace(-0.5, 0.5, 8)


@pytest.mark.parametrize(
    ("ours", "theirs", "parameters", "tolerance"),
    [
        (augment.adjust_brightness, tv.adjust_brightness, FACTORS, 1e-6),
        (augment.adjust_contrast, tv.adjust_contrast, FACTORS, 1e-6),
        (augment.adjust_saturation, tv.adjust_saturation, FACTORS, 1e-6),
        (augment.adjust_hue, tv.adjust_hue, SHIFTS, 1e-5),
    ],
)
def test_each_operation_equals_torchvision(ours, theirs, parameters, tolerance):
    batched = ours(IMAGES, parameters.view(-1, 1, 1, 1))
    one_by_one = torch.stack([theirs(image, float(p)) for image, p in zip(IMAGES, parameters)])
    torch.testing.assert_close(batched, one_by_one, atol=tolerance, rtol=0)


def test_grey_images_keep_their_hue_shift_harmless():
    flat = torch.rand(2, 1, 8, 8).expand(2, 3, 8, 8)
    torch.testing.assert_close(augment.adjust_hue(flat, torch.full((2, 1, 1, 1), 0.3)), flat)


def test_blur_equals_a_gaussian_convolution():
    from scipy.ndimage import gaussian_filter1d

    sigmas = torch.tensor([0.1, 0.7, 1.4, 2.0])
    ours = augment.gaussian_blur(IMAGES[:4].clone(), sigmas.view(-1, 1, 1, 1)).numpy()
    for image, blurred, sigma in zip(IMAGES[:4].numpy(), ours, sigmas.tolist()):
        wanted = gaussian_filter1d(gaussian_filter1d(image, sigma, 1, mode="nearest", truncate=6 / sigma), sigma, 2,
                                   mode="nearest", truncate=6 / sigma)  # fmt: skip
        np.testing.assert_allclose(blurred, wanted, atol=2e-3)


def test_a_batch_equals_its_samples_one_by_one_in_their_own_order():
    spec = ViewSpec(size=24, solarize=0.3)
    rows = np.arange(8) * 1000 + 5
    whole = apply_colours(
        IMAGES.clone(), draw_colours(spec, seed=1, passes=np.full(len(rows), 2), row_ids=rows, view=1)
    )
    for index in range(8):
        c = draw_colours(spec, seed=1, passes=np.array([2]), row_ids=rows[index : index + 1], view=1)
        image = IMAGES[index]
        if c.flipped[0]:
            image = tv.hflip(image)
        jitters = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
        values = [c.brightness[0], c.contrast[0], c.saturation[0], c.hue[0]]
        for number in c.order_B4[0] if c.jittered[0] else []:
            image = jitters[number](image, float(values[number]))
        if c.greyed[0]:
            image = tv.rgb_to_grayscale(image, 3)
        if c.blurred[0]:
            image = augment.gaussian_blur(image[None], torch.full((1, 1, 1, 1), float(c.sigma[0])))[0]
        if c.solarized[0]:
            image = tv.solarize(image, 0.5)
        torch.testing.assert_close(whole[index], image, atol=2e-5, rtol=0)


def test_views_are_a_function_of_seed_epoch_row_and_view():
    specs = simclr_views(16)
    arrays = [np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)] * 2
    rows = np.array([3, 1, 4, 15, 9, 2])

    def make(seed=0, epoch=0, rows=rows, arrays=arrays):
        return finish_views(
            arrays, specs, seed=seed, passes=np.full(len(rows), epoch), row_ids=rows, device=torch.device("cpu")
        )

    first, second = make()
    assert torch.equal(make()[0], first)
    assert not torch.equal(first, second)
    assert not torch.equal(make(seed=1)[0], first)
    assert not torch.equal(make(epoch=1)[0], first)
    part = make(rows=rows[2:4], arrays=[array[2:4] for array in arrays])[0]
    torch.testing.assert_close(part, first[2:4])  # the neighbours in the batch do not matter


def test_parameters_are_distributed_as_lightly_draws_them():
    colours = draw_colours(
        simclr_views(64)[0], seed=0, passes=np.zeros(20_000, dtype=np.int64), row_ids=np.arange(20_000), view=0
    )
    for draws, low, high in [
        (colours.brightness, 0.2, 1.8),
        (colours.contrast, 0.2, 1.8),
        (colours.saturation, 0.2, 1.8),
        (colours.hue, -0.2, 0.2),
        (colours.sigma, 0.1, 2.0),
    ]:
        assert stats.kstest(draws, "uniform", args=(low, high - low)).pvalue > 1e-3
    for gate, probability in [
        (colours.flipped, 0.5),
        (colours.jittered, 0.8),
        (colours.greyed, 0.2),
        (colours.blurred, 0.5),
    ]:
        assert abs(gate.mean() - probability) < 0.012  # more than three standard deviations
    orders = np.unique(colours.order_B4, axis=0, return_counts=True)[1]
    assert len(orders) == 24 and stats.chisquare(orders).pvalue > 1e-3


def test_crops_are_distributed_as_torchvision_draws_them():
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image, spec = torch.zeros(3, 300, 400), ViewSpec(size=64)
    theirs = np.array([RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)])
    ours = np.array(
        [draw_boxes([spec], width=400, height=300, seed=0, pass_number=0, row_id=row)[0] for row in range(4000)]
    )
    left, top, right, bottom = ours.T
    assert (left >= 0).all() and (top >= 0).all() and (right <= 400).all() and (bottom <= 300).all()
    for mine, other in [
        ((right - left) * (bottom - top), theirs[:, 2] * theirs[:, 3]),
        ((right - left) / (bottom - top), theirs[:, 3] / theirs[:, 2]),
        (left, theirs[:, 1]),
        (top, theirs[:, 0]),
    ]:
        assert stats.ks_2samp(mine, other).pvalue > 1e-3


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1000, 1), (1, 1000), (3, 2)])
def test_boxes_of_extreme_images_fit(width, height):
    for row in range(50):
        left, top, right, bottom = draw_boxes(
            [ViewSpec(size=8)], width=width, height=height, seed=0, pass_number=0, row_id=row
        )[0]
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
    left, top, right, bottom = central_box(width=width, height=height, share=0.875)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
