"""timm's networks that are made for one size are made for the size that is asked for,
or refused in a line.
"""

import pytest
import torch

from cluster.errors import UserError
from pretrain.encoders import load_encoder, save_encoder
from pretrain.encoders.sizes import made_for, trouble_at
from pretrain.encoders.sources import open_encoder


def test_a_network_of_one_size_is_made_for_another(tmp_path):
    source = open_encoder("random:timm:mixer_s32_224", "", {}, image_size=64)
    assert source.encoder.spec["arguments"]["img_size"] == 64 and trouble_at(source.encoder, 64) is None
    assert (
        open_encoder("random:timm:mixer_s32_224", "", {}).encoder.spec["arguments"].get("img_size") is None
    )
    # and stays so when it is saved
    save_encoder(source.encoder, str(tmp_path / "encoder"), input_size=64)
    assert trouble_at(load_encoder(str(tmp_path / "encoder")), 64) is None
    with pytest.raises(
        UserError, match=r"does not take images of 96 x 96 pixels .* image_size to a size that it takes: 64"
    ):
        open_encoder(str(tmp_path / "encoder"), "", {}, image_size=96)


def test_a_size_that_no_argument_makes_possible_is_refused_in_a_line():
    class Squares(torch.nn.Module):
        in_channels = 3

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            if images.shape[-1] % 32:
                raise ValueError("not a multiple of 32\nand more")
            return [images]

    def build(arguments):
        if arguments:
            raise UserError("no such argument")
        return Squares()

    with pytest.raises(UserError) as refused:
        made_for(50, build, {}, name="squares", own=224, setting="image_size")
    told = (
        "squares does not take images of 50 x 50 pixels (not a multiple of 32); set image_size to a "
        "size that it takes: "
    )
    assert str(refused.value) == told + "32, 64, 224"
    assert made_for(None, build, {}, name="squares", own=224, setting="image_size")
    assert made_for(64, build, {}, name="squares", own=224, setting="image_size").training
