"""Every method at a size for tests, and views and stored features for it to learn from."""

import tempfile
from contextlib import contextmanager

import numpy as np
import torch

from pretrain.data.reading.loader import Batch
from pretrain.data.views.recipes import recipe_views
from pretrain.encoders import build_encoder
from pretrain.methods import METHODS, build_method
from tests.pretrain.features import describe_features_only

SMALL = {
    "barlow_twins": {"hidden_dim": 32, "projection_dim": 16},
    "byol": {"hidden_dim": 32, "projection_dim": 16, "momentum": 0.9},
    "densecl": {"hidden_dim": 32, "projection_dim": 16, "queue_size": 20, "momentum": 0.9},
    "distill": {
        "hidden_dim": 32,
        "target_dim": 5,
        "whitening": 0.5,
        "batch_weight": 0.2,
        "map_weight": 0.7,
        "contrast_weight": 0.3,
    },
    "dino": {"hidden_dim": 32, "bottleneck_dim": 16, "output_dim": 24, "momentum": 0.9, "frozen_until": 0.1},
    "lejepa": {"hidden_dim": 32, "projection_dim": 16, "num_directions": 32},
    "moco": {"hidden_dim": 32, "projection_dim": 16, "queue_size": 20, "momentum": 0.9},
    "mocov3": {"hidden_dim": 32, "projection_dim": 16, "momentum": 0.9},
    "simclr": {"hidden_dim": 32, "projection_dim": 16},
    "simsiam": {"hidden_dim": 32, "projection_dim": 16, "bottleneck_dim": 8},
    "swav": {
        "hidden_dim": 32,
        "projection_dim": 16,
        "num_prototypes": 12,
        "queue_size": 16,
        "queue_from": 0.2,
    },
    "vicreg": {"hidden_dim": 32, "projection_dim": 16},
}
VIEWS = {"distill": {"num_views": 2}}
BATCH, STEPS = 8, 10
TEACHER_DIM, TEACHER_CHANNELS, TEACHER_CELLS = 6, 3, 4


def make_method(name, **more):
    torch.manual_seed(0)
    encoder = build_encoder("convattn_nano", stem_stride=2)
    images_per_pass = more.pop("images_per_pass", 0)
    with small_arguments(name) as arguments:
        return build_method(name, encoder, arguments | more, images_per_pass=images_per_pass).double()


@contextmanager
def small_arguments(name):
    """Keyword arguments of a small method; the folders that they name are needed while it is built."""
    with tempfile.TemporaryDirectory() as folder:
        features = {} if name != "distill" else {"features": describe_features_only(folder, dim=TEACHER_DIM)}
        yield SMALL[name] | features


def make_views(name, step=0, batch=BATCH):
    generator = torch.Generator().manual_seed(1 + step)
    specs = recipe_views(METHODS[name].recipe, 32, VIEWS.get(name, {}))[:4]
    return [torch.randn(batch, 3, s.size, s.size, generator=generator, dtype=torch.float64) for s in specs]


def make_inputs(method, name, step=0, batch=BATCH, rows=slice(None), dtype=torch.float64):
    """What a method takes of some rows of a batch: views,
    and what is stored beside the images where it learns from that.
    """
    views = make_views(name, step, batch)
    generator = np.random.default_rng(step)
    stored = generator.standard_normal((batch, TEACHER_DIM)).astype(np.float16)
    maps = generator.standard_normal((batch, TEACHER_CHANNELS, TEACHER_CELLS, TEACHER_CELLS)).astype(
        np.float16
    )
    left_top = generator.uniform(0, 0.4, (len(views), batch, 2))
    size = generator.uniform(0.3, 0.6, (len(views), batch, 2))
    mirrored = generator.integers(0, 2, (len(views), batch, 1))
    geometry_VB5 = np.concatenate([left_top, left_top + size, mirrored], axis=2).astype(np.float32)
    beside = Batch(
        np.arange(batch)[rows],
        np.zeros(batch, np.int64)[rows],
        [],
        {"features": list(stored[rows]), "maps": list(maps[rows])},
        geometry_VB5=geometry_VB5[:, rows],
    )
    return method.to_inputs([view[rows].to(dtype) for view in views], beside)
