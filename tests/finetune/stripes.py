"""A data set that is learnt in seconds: stripes across or up and down."""

import io
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from pretrain.training import recipe

CONFIG = "configs/finetune/classification.yaml"
NAMES = ["<b>up & down</b>", "across"]  # names are text, whatever they hold


def stripes(number):
    """A JPEG with horizontal or vertical stripes; returns it with its class."""
    generator = np.random.default_rng(number)
    label = number % 2
    position = np.mgrid[:32, :32][1 - label] if number % 2 else np.mgrid[:32, :32][1]
    wave = np.sin(position * generator.uniform(0.6, 1.4) + generator.uniform(0, 6))
    pixels = 128 + 90 * wave[..., None] * np.ones(3) + generator.normal(0, 20, (32, 32, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue(), NAMES[label]


def arguments(world, out, **more):
    settings = {
        "encoder": world / "encoder",
        "data.url": world / "train",
        "validation_url": world / "validation",
        "out": out,
        "training.batch_size_global": 16,
        "training.epochs": 8,
        "training.warmup_epochs": 1,
        "training.log_every_steps": 1,
        "training.checkpoint_every_steps": 5,
        "evaluate_every_epochs": 2,
        "compare": "[]",
        "report_images": 0,
        "classification.min_crop": 0.6,
        "layer_decay": 1.0,
        "optimizer.learning_rate": 0.02,
        "cluster.workers": 0,
        "cluster.cpus_per_worker": 1,
        **more,
    }
    return [CONFIG, *(f"{key.replace('__', '.')}={value}" for key, value in settings.items())]


@contextmanager
def cut_off_after(num_batches):
    """Interrupts training when it asks for a further batch."""
    whole, taken = recipe.TrainingBatches.__next__, []

    def cut_off(self):
        taken.append(None)
        if len(taken) > num_batches:
            raise KeyboardInterrupt
        return whole(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe.TrainingBatches, "__next__", cut_off)
        yield
