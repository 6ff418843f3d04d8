"""The batched operations on a device and the compiled ones on the CPU equal torchvision's on each image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import stats
from torchvision.transforms import functional as tv

from pretrain.data.views import augment
from pretrain.data.views import colour_kernels as kernels
from pretrain.data.views.augment import apply_colours
from pretrain.data.views.colours import draw_colours
from pretrain.data.views.random_views import RandomViews, central_box, draw_views, find_boxes, write_crop
from pretrain.data.views.recipes import RECIPES, ViewSpec, simclr_views

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
    ours = augment.gaussian_blur(IMAGES[:4], sigmas.view(-1, 1, 1, 1), max_sigma=2.0).numpy()
    for image, blurred, sigma in zip(IMAGES[:4].numpy(), ours, sigmas.tolist()):
        wanted = gaussian_filter1d(gaussian_filter1d(image, sigma, 1, mode="nearest", truncate=6 / sigma),
                                   sigma, 2,
                                   mode="nearest", truncate=6 / sigma)  # fmt: skip
        np.testing.assert_allclose(blurred, wanted, atol=2e-3)


def by_torchvision(image, colours, index, spec):
    """One image through torchvision's functions, by what was drawn for it."""
    jitters = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    values = [getattr(colours, name)[index] for name in ("brightness", "contrast", "saturation", "hue")]
    for number in colours.order_B4[index] if colours.jittered[index] else []:
        image = jitters[number](image, float(values[number]))
    if colours.greyed[index]:
        image = tv.rgb_to_grayscale(image, 3)
    steps = [
        lambda x: tv.solarize(x, 0.5) if colours.solarized[index] else x,
        lambda x: (
            augment.gaussian_blur(
                x[None], torch.full((1, 1, 1, 1), float(colours.sigma[index])), max_sigma=2.0
            )[0]
            if colours.blurred[index]
            else x
        ),
    ]
    for step in steps if spec.solarize_first else steps[::-1]:
        image = step(image)
    return image


@pytest.mark.parametrize("where", ["device", "host"])
@pytest.mark.parametrize("solarize_first", [False, True])
def test_a_batch_equals_its_samples_one_by_one_in_their_own_order(where, solarize_first):
    spec = ViewSpec(size=24, solarize=0.3, solarize_first=solarize_first)
    rows = np.arange(200) * 1000 + 5
    images = torch.randint(
        0, 256, (200, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    colours = draw_colours(spec, seed=1, passes=np.full(len(rows), 2), row_ids=rows, view=1)
    parameters = colours.rows(spec)
    if where == "device":
        whole, tolerance = apply_colours(images.float() / 255, torch.from_numpy(parameters)), 2e-5
    else:
        done = images.numpy().copy()
        scratch = np.empty(kernels.colour_scratch_floats(3, 24), np.float32)
        for view, row in zip(done, parameters, strict=True):
            kernels.colour(view, row, scratch)
        whole, tolerance = torch.from_numpy(done).float() / 255, 0.51 / 255
    for index in range(len(rows)):
        wanted = by_torchvision(images[index].float() / 255, colours, index, spec)
        difference = (whole[index] - wanted).abs()
        # where a value lies at one half, rounding decides whether it is inverted
        assert (difference > tolerance).float().mean() < (0.004 if colours.solarized[index] else 1e-9), index


def test_one_channel_and_many_have_brightness_contrast_and_blur():
    images = torch.rand(4, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = np.arange(4)
    colours = draw_colours(
        ViewSpec(size=16, jitter=1.0, blur=1.0), seed=0, passes=rows * 0, row_ids=rows, view=0
    )
    parameters = torch.from_numpy(colours.rows(ViewSpec(size=16)))
    whole = apply_colours(images, parameters)
    # each channel on its own gives the same: nothing mixes bands that have nothing to do with each other
    for channel in range(5):
        alone = apply_colours(images[:, channel : channel + 1], parameters)
        torch.testing.assert_close(whole[:, channel : channel + 1], alone)
    scratch = np.empty(kernels.colour_scratch_floats(5, 16), np.float32)
    for index, image in enumerate((images * 255).byte().numpy()):
        wanted = apply_colours(torch.from_numpy(image[None]).float() / 255, parameters[index : index + 1])[0]
        kernels.colour(image, parameters[index].numpy(), scratch)
        np.testing.assert_allclose(image, wanted.numpy() * 255, atol=0.51)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "weak"])
def test_views_are_a_function_of_seed_epoch_row_and_view(recipe):
    more = {"swav": {"local_size": 16}, "dino": {"local_size": 16}, "distill": {"num_views": 2}}.get(
        recipe, {}
    )
    specs = RECIPES[recipe](32, **more)
    rows, images = np.array([3, 1, 4, 15, 9, 2]), [png(noise(60, 50, seed)) for seed in range(6)]

    def make(seed=0, epoch=0, chosen=slice(None)):
        filling = RandomViews(specs, seed=seed).begin(np.full(len(rows[chosen]), epoch), rows[chosen])
        for index, data in enumerate(images[chosen]):
            filling.fill(index, data)
        return filling.arrays

    first, second, *_ = make()
    np.testing.assert_array_equal(make()[0], first)
    assert (first != second).any()
    assert (make(seed=1)[0] != first).any()
    assert (make(epoch=1)[0] != first).any()
    part = make(chosen=slice(2, 4))
    for mine, whole in zip(part, make(), strict=True):
        np.testing.assert_array_equal(mine, whole[2:4])  # the neighbours in the batch do not matter


def test_host_and_device_make_the_same_views():
    specs, rows = RECIPES["byol"](48), np.arange(12)
    views = {}
    for on_host in (True, False):
        filling = RandomViews(specs, seed=3, colours_on_host=on_host).begin(rows * 0, rows)
        for index in rows:
            filling.fill(index, png(noise(70, 90, index)))
        views[on_host] = augment.finish_views(filling.arrays, filling.parameters, device=torch.device("cpu"))
    for host, device in zip(views[True], views[False], strict=True):
        # a rounding to bytes, which solarize makes large for a few
        assert ((host - device).abs() > 0.52 / 255 / 0.224).float().mean() < 0.002


def test_parameters_are_distributed_as_lightly_draws_them():
    colours = draw_colours(
        simclr_views(64)[0],
        seed=0,
        passes=np.zeros(20_000, dtype=np.int64),
        row_ids=np.arange(20_000),
        view=0,
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


def corners(boxes_N4):
    """Left, top, width, height -> left, top, right, bottom."""
    return np.concatenate([boxes_N4[:, :2], boxes_N4[:, :2] + boxes_N4[:, 2:]], axis=1)


def test_crops_are_distributed_as_torchvision_draws_them():
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image, spec = torch.zeros(3, 300, 400), ViewSpec(size=64)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    )
    rows = np.arange(4000)
    draws = draw_views([spec], seed=0, passes=rows * 0, row_ids=rows).crops_BVA4
    ours = np.concatenate([find_boxes([spec], crops, width=400, height=300) for crops in draws])
    left, top, right, bottom = corners(ours).T
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
    spec, rows = ViewSpec(size=8), np.arange(50)
    for crops in draw_views([spec], seed=0, passes=rows * 0, row_ids=rows).crops_BVA4:
        left, top, right, bottom = corners(find_boxes([spec], crops, width=width, height=height))[0]
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
    left, top, right, bottom = corners(np.array([central_box(width=width, height=height, fraction=0.875)]))[
        0
    ]
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize("size", [224, 64, 7])
@pytest.mark.parametrize(
    "box",
    [
        (10, 20, 280, 300),
        (0, 0, 400, 500),
        (5.5, 3.25, 50, 40),
        (390, 490, 10, 10),
        (0, 0, 1, 1),
        (0, 0, 400, 3),
    ],
)
def test_crops_are_filtered_as_pillow_filters_them(box, size, cubic):
    """Also where a crop shrinks by fifty: every pixel counts, so there is no aliasing."""
    pixels = noise(500, 400)
    left, top, width, height = box
    corners = (left, top, left + width, top + height)
    filtering = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    wanted = np.asarray(Image.fromarray(pixels).resize((size, size), filtering, box=corners)).transpose(
        2, 0, 1
    )
    four = np.concatenate([pixels, pixels[:, :, :1]], axis=2)[None]
    for flipped in (False, True):
        made = np.empty((3, size, size), np.uint8)
        write_crop(four, box, made, flipped=flipped, cubic=cubic)
        difference = np.abs(made.astype(int) - (wanted[:, :, ::-1] if flipped else wanted))
        # of noise, a cubic filter leaves [0, 255], and is cut off after its first axis,
        # which is another one in Pillow
        assert difference.max() <= (24 if cubic else 3) and difference.mean() < (0.8 if cubic else 0.5)


@pytest.mark.parametrize("size", [224, 96])
@pytest.mark.parametrize("box", [(10, 20, 280, 300), (0, 0, 400, 500), (5.5, 3.25, 150, 140)])
def test_cubic_crops_of_images_are_near_pillows(box, size):
    x, y = np.meshgrid(np.arange(400), np.arange(500))
    pixels = np.stack(
        [127 + 120 * np.sin(x / 9), 127 + 120 * np.cos((x + y) / 14), (x * y) % 256 // 64 * 80], axis=2
    )
    pixels = np.asarray(Image.fromarray(pixels.astype(np.uint8)).filter(ImageFilter.GaussianBlur(1)))
    left, top, width, height = box
    corners = (left, top, left + width, top + height)
    wanted = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box=corners))
    made = np.empty((3, size, size), np.uint8)
    write_crop(np.concatenate([pixels, pixels[:, :, :1]], axis=2)[None], box, made, cubic=True)
    difference = np.abs(made.transpose(1, 2, 0).astype(int) - wanted)
    assert difference.max() <= 3 and difference.mean() < 0.25
