"""Detection networks: three heads and a pyramid on any encoder, strides and anchors fitted to boxes."""

import numpy as np
import pytest
import torch

from finetune.tasks.detection.fitting import check_strides, fit_anchors, fit_strides, possible_strides
from finetune.tasks.detection.heads import HEADS, Anchors
from finetune.tasks.detection.model import Detector
from finetune.tasks.detection.pyramid import Pyramid
from pretrain.encoders import build_encoder
from tests.finetune.shapes import SMALL


def detector(encoder, head, **more):
    torch.manual_seed(0)
    strides = [8, 16]
    anchors = [[[10.0, 12.0], [16.0, 12.0]], [[30.0, 30.0], [40.0, 24.0]]]
    arguments = {
        "num_classes": 2,
        "channels": 32,
        "depth": 1,
        "max_detections": 20,
        "strides": strides,
        "anchors": anchors,
    }
    return Detector(encoder, head=head, **{**arguments, **more})


@pytest.mark.parametrize("head", sorted(HEADS))
def test_a_head_trains_every_parameter_also_beside_empty_images(head):
    model = detector(build_encoder("convattn_nano", **SMALL), head).train()
    targets = [
        {
            "boxes": torch.tensor([[4.0, 6, 30, 33], [40, 40, 55, 50], [1, 1, 60, 62]]),
            "labels": torch.tensor([0, 1, 1]),
        },
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    output = model((torch.randn(2, 3, 64, 64), targets))
    output.loss.backward()
    total = float(output.loss.detach())
    assert np.isfinite(total) and sum(output.logs.values()) == pytest.approx(total, rel=1e-5)
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    empty = model((torch.randn(1, 3, 64, 64), targets[1:]))
    assert empty.loss.isfinite()
    images = torch.randn(2, 3, 64, 64)
    losses = []
    for is_short in (False, True):
        torch.manual_seed(1)  # candidates are sampled
        with torch.autocast("cpu", torch.bfloat16, enabled=is_short):
            losses.append(model((images, targets)).loss.detach())
    assert losses[1].dtype == torch.float32 and float(losses[1]) == pytest.approx(float(losses[0]), rel=0.05)
    found = model.eval().detect(torch.randn(2, 3, 64, 64), [(64.0, 64.0), (40.0, 64.0)])
    for one, (height, width) in zip(found, ((64, 64), (40, 64)), strict=True):
        assert len(one["boxes"]) <= 20 and (one["scores"].diff() <= 0).all()
        assert (one["boxes"] >= 0).all() and (
            one["boxes"] <= torch.tensor([width, height, width, height])
        ).all()
        assert ((one["labels"] >= 0) & (one["labels"] < 2)).all()


@pytest.mark.parametrize("head", sorted(HEADS))
def test_a_frozen_encoder_stays_and_the_rest_learns(head):
    model = detector(build_encoder("convattn_nano", **SMALL), head, mode="linear").train()
    targets = [{"boxes": torch.tensor([[4.0, 6, 30, 33]]), "labels": torch.tensor([0])}]
    model((torch.randn(1, 3, 64, 64), targets)).loss.backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in [*model.pyramid.parameters(), *model.head.parameters()])


@pytest.mark.parametrize(
    ("name", "options", "strides"),
    [
        ("convattn_nano", SMALL, [2, 4, 8, 16]),
        ("convattn_nano", SMALL, [4, 8]),
        ("convattn_nano", SMALL, [1, 2]),
        ("convattn_nano", SMALL, [16, 32, 64]),
        ("convattn_classic", {}, [4, 8]),
        ("timm:resnet18", {}, [8, 16, 32, 64]),
        ("timm:vit_tiny_patch16_224", {}, [4, 8, 16, 32]),
    ],
)
def test_a_pyramid_on_any_encoder(name, options, strides):
    encoder = build_encoder(name, **options)
    check_strides(strides, encoder.strides)
    maps = Pyramid(encoder, strides=strides, channels=32)(encoder(torch.randn(1, 3, 128, 128)))
    assert [tuple(one.shape) for one in maps] == [
        (1, 32, 128 // stride, 128 // stride) for stride in strides
    ]


def test_anchors_stand_at_the_centres_of_places():
    maps = [torch.zeros(1, 8, 4, 6), torch.zeros(1, 8, 2, 3)]
    anchors = Anchors([8, 16], [[[6.0, 4.0]], [[20.0, 10.0]]])
    images = type("Images", (), {"image_sizes": [(32, 48)]})
    found = anchors(images, maps)[0]
    assert len(found) == 24 + 6
    assert found[0].tolist() == [1, 2, 7, 6] and found[7].tolist() == [
        9,
        10,
        15,
        14,
    ]  # second row, second place
    assert found[24].tolist() == [-2, 3, 18, 13]


def test_strides_and_anchors_are_fitted_to_the_boxes():
    generator = np.random.default_rng(0)
    sizes = np.concatenate([generator.normal(18, 1, 300), generator.normal(100, 5, 100)])
    assert fit_strides(sizes, (4, 8, 16, 32)) == [8, 16]
    assert fit_strides(sizes * 4, (4, 8, 16, 32)) == [32, 64]
    assert fit_strides(np.full(9, 3.0), (16, 16, 16)) == [4]
    assert possible_strides((14,)) == [7, 14, 28, 56]
    shapes = np.stack([sizes, sizes * generator.choice([0.5, 2.0], len(sizes))], axis=1)
    (small, other), (large, last) = fit_anchors(shapes, 2, 2)
    # narrow and wide ones of either size
    for (w, h), (side, ratio) in zip(
        (small, other, large, last), ((18, 0.5), (18, 2), (100, 0.5), (100, 2))
    ):
        assert w == pytest.approx(side, rel=0.1) and h / w == pytest.approx(ratio, rel=0.1)
    assert fit_anchors(np.full((5, 2), 7.0), 2, 3) == [[[7.0, 7.0]] * 3] * 2
