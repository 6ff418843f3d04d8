"""From rows to finished views, in the way that the settings and the device ask for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.data.images.buffer_pool import BufferPool
from pretrain.data.reading.kept import GIB, KeptImages
from pretrain.data.reading.loader import Batch, HostTransform
from pretrain.data.views.augment import IMAGENET_MEAN, IMAGENET_STD, finish_views
from pretrain.data.views.random_views import RandomViews
from pretrain.data.views.recipes import ViewSpec


class Viewer:
    """What makes the views of a run: on the host up to bytes, on the device the rest.

    Args:
        specs: of the views.
        seed: of the run.
        device: that trains.
        channels: of the images, see `pretrain.data.images.pixels.open_image`.
        mean, std: subtracted from and divided by, one a channel; by default those of ImageNet, or 0.5 and
            0.25 where there are not three channels.
        keep: `host` keeps decoded images in memory (see `pretrain.data.reading.kept`), `none` does not.
        keep_bytes: they may take.
    """

    def __init__(
        self,
        specs: Sequence[ViewSpec],
        *,
        seed: int,
        device: torch.device,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        keep: str = "none",
        keep_bytes: int = 4 * GIB,
    ) -> None:
        self.specs, self.seed, self.device, self.channels = list(specs), seed, device, channels
        self.mean, self.std = tuple(mean or default_mean(channels)), tuple(std or default_std(channels))
        self._keep, self._keep_bytes = keep, keep_bytes
        self._buffer_pool = BufferPool()

    def host_transform(self) -> HostTransform:
        """What the host makes of encoded images."""
        return RandomViews(
            self.specs,
            seed=self.seed,
            colours_on_host=self.device.type == "cpu",
            channels=self.channels,
            pinned=self.device.type == "cuda",
        )

    def kept_images(self) -> KeptImages | None:
        """Where a loader keeps what it decoded."""
        return KeptImages(self._keep_bytes, channels=self.channels) if self._keep == "host" else None

    def finish(self, batch: Batch) -> list[Tensor]:
        """Float views_BCHW of a batch, normalised, on the device."""
        return finish_views(
            batch.arrays,
            batch.parameters,
            device=self.device,
            mean=self.mean,
            std=self.std,
            buffer_pool=self._buffer_pool,
        )


def default_mean(channels: int) -> tuple[float, ...]:
    """What is subtracted from each channel when nothing else is said."""
    return IMAGENET_MEAN if channels == 3 else (0.5,) * channels


def default_std(channels: int) -> tuple[float, ...]:
    """What each channel is divided by when nothing else is said."""
    return IMAGENET_STD if channels == 3 else (0.25,) * channels
