"""What the tests of fine-tuning share."""

import pytest
import torch

from pretrain.encoders import build_encoder, save_encoder
from tests.finetune.stripes import stripes
from tests.pretrain.shards import write_shards


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Training and validation shards, and an encoder folder."""
    folder = tmp_path_factory.mktemp("world")
    for name, numbers in (("train", range(64)), ("validation", range(100, 140))):
        images, labels = zip(*(stripes(number) for number in numbers))
        write_shards(folder / name, list(images), label=list(labels))
    torch.manual_seed(0)
    save_encoder(build_encoder("convattn_nano", stem_stride=2), str(folder / "encoder"), input_size=32)
    return folder
