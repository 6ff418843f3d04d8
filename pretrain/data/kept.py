"""Decoded images that stay in memory, for data sets that fit: nothing is decoded twice.

`KeptImages` holds them in the memory of the host, whatever their sizes, as many as a limit allows. `ImagesOnDevice` holds a
whole data set of equally large images on the training device, which crops them in batches: the host then does no more than
to say which rows come next and where their crops lie.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.errors import UserError
from pretrain.data.decode import BadImage
from pretrain.data.loader import batches_in_sequence
from pretrain.data.order import Segment
from pretrain.data.pixels import as_channels, open_picture
from pretrain.data.recipes import ViewSpec
from pretrain.data.shards import RowPlace, Rows, Shards
from pretrain.data.views import draw_views, find_boxes

GIB = 2**30
ID_BYTES = 8


class KeptImages:
    """Images of a rank that were decoded before. Safe to use from several threads.

    Args:
        limit_bytes: of decoded pixels (four bytes each); what does not fit is decoded again each time.
        channels: see `pretrain.data.pixels.open_picture`.
    """

    def __init__(self, limit_bytes: int, *, channels: int = 3) -> None:
        self._limit, self._channels, self._bytes = limit_bytes, channels, 0
        self._images: dict[int, np.ndarray | BadImage] = {}
        self._lock = threading.Lock()

    def pixels(self, row_id: int, data: Any) -> Any:
        """The pixels of a row if they are kept or can be, else its encoded file as it came. Raises BadImage."""
        kept = self._images.get(row_id)
        if kept is None:
            if self._bytes >= self._limit:
                return data
            try:
                kept = open_picture(data, channels=self._channels, fast=True).decode(1).copy()
            except BadImage as error:
                kept = error
            with self._lock:
                if row_id not in self._images:
                    self._images[row_id] = kept
                    self._bytes += kept.nbytes if isinstance(kept, np.ndarray) else 0
        if isinstance(kept, BadImage):
            raise BadImage(str(kept))
        return kept


class ImagesOnDevice:
    """All images of a data set as one tensor. Stands in for its shards: what is read of a row is its id.

    Args:
        shards: the data set.
        device: where the images are kept.
        limit_bytes: they may take.
        channels: see `pretrain.data.pixels.open_picture`.
        decode_threads: that decode them, once.

    Attributes:
        images_NCHW: uint8, in the order of the rows; zeros where a row is bad.
        bad: row id -> why it cannot be used.

    Raises UserError when the images differ in size or do not fit.
    """

    mean_row_bytes = float(ID_BYTES)

    def __init__(
        self, shards: Shards, *, device: torch.device, limit_bytes: int, channels: int = 3, decode_threads: int = 1
    ) -> None:
        self.manifest = shards.manifest
        self.columns = shards.columns
        self._shards = shards
        self.bad: dict[int, str] = {}
        self._values: dict[str, list[Any]] = {name: [None] * shards.manifest.num_rows for name in shards.columns}
        images: Tensor | None = None
        for batch in batches_in_sequence(shards, _Whole(channels), batch_size=512, decode_threads=decode_threads):
            self.bad.update({row.row_id: row.reason for row in batch.bad_rows})
            for index, row_id in enumerate(batch.row_ids.tolist()):
                pixels_CHW = batch.arrays[0][index]
                if images is None:
                    images = self._room(pixels_CHW.shape, device, limit_bytes)
                if pixels_CHW.shape != images.shape[1:]:
                    sizes = [f"{shape[2]}x{shape[1]}" for shape in (images.shape[1:], pixels_CHW.shape)]
                    raise UserError(
                        f"data.keep=device needs images of one size: {shards.place(row_id)} has {sizes[1]} pixels, others have "
                        f"{sizes[0]}; use data.keep=host"
                    )
                batch.arrays[0][index] = torch.from_numpy(pixels_CHW)
                for name in shards.columns:
                    self._values[name][row_id] = batch.columns[name][index]
            if images is not None and len(batch.row_ids):
                images[torch.from_numpy(batch.row_ids).to(device)] = torch.stack(list(batch.arrays[0])).to(device)
        if images is None:
            raise UserError(
                f"none of {self.manifest.num_rows} images can be decoded; `python -m pretrain.data check` lists why"
            )
        self.images_NCHW = images

    def _room(self, shape: tuple[int, ...], device: torch.device, limit_bytes: int) -> Tensor:
        num_bytes = self.manifest.num_rows * int(np.prod(shape))
        if num_bytes > limit_bytes:
            raise UserError(
                f"data.keep=device would take {num_bytes / GIB:.1f} GiB, more than data.keep_gib={limit_bytes / GIB:g}: raise "
                "it, or use data.keep=host or none"
            )
        return torch.zeros((self.manifest.num_rows, *shape), dtype=torch.uint8, device=device)

    def place(self, row_id: int) -> RowPlace:
        """Where the row with this id lies."""
        return self._shards.place(row_id)

    def read(self, segment: Segment, *, stopped: Callable[[], bool] = lambda: False) -> Iterator[Rows]:
        """The rows of a segment as `Shards.read` gives them, with their ids in place of their images."""
        first = int(self.manifest.start_of_group[segment.group])
        ids = list(range(first + segment.start, first + segment.stop))
        columns = {name: values[ids[0] : ids[-1] + 1] for name, values in self._values.items()}
        yield Rows(ids, [segment.pass_number] * len(ids), [row.to_bytes(ID_BYTES, "little") for row in ids], columns)


class _Whole:
    """Host transform that keeps images as they are, an object array of uint8 [C, H, W]."""

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self.arrays: list[np.ndarray] = []
        self.parameters = self.geometry_VB5 = None

    def begin(self, passes: np.ndarray, row_ids: np.ndarray) -> _Whole:
        filling = _Whole(self._channels)
        filling.arrays = [np.empty(len(row_ids), dtype=object)]
        return filling

    def fill(self, index: int, data: Any) -> None:
        self.arrays[0][index] = as_channels(
            open_picture(data, channels=self._channels, fast=True).decode(1), self._channels
        )


class ViewsOnDevice:
    """Host transform for `ImagesOnDevice`: says which rows and crops a batch is made of; `make` then makes the views.

    Args:
        specs, seed: as for `pretrain.data.views.RandomViews`.
        kept: the images.
    """

    def __init__(self, specs: Sequence[ViewSpec], *, seed: int, kept: ImagesOnDevice) -> None:
        self.specs, self.seed, self.kept = list(specs), seed, kept

    def begin(self, passes: np.ndarray, row_ids: np.ndarray) -> _RowsFilling:
        """Draws the views of a batch."""
        height, width = self.kept.images_NCHW.shape[2:]
        draws = draw_views(self.specs, seed=self.seed, passes=passes, row_ids=row_ids)
        boxes_BV4 = np.stack([find_boxes(self.specs, crops, width=width, height=height) for crops in draws.crops_BVA4])
        return _RowsFilling(self.kept.bad, len(row_ids), boxes_BV4, draws.colours, self.specs, (width, height))

    def make(self, rows_B: Tensor, geometry_VB5: np.ndarray) -> list[Tensor]:
        """uint8 [B, C, size, size] on the device for each view, of the rows int64 [B]."""
        images_BCHW = self.kept.images_NCHW[rows_B.to(self.kept.images_NCHW.device)].float()
        geometry = torch.from_numpy(geometry_VB5).to(images_BCHW.device, non_blocking=True)
        return [
            crop_batch(images_BCHW, geometry[view], spec.size, cubic=spec.cubic) for view, spec in enumerate(self.specs)
        ]


class _RowsFilling:
    """See `pretrain.data.views.ViewFilling`; the only array is int64 [B], the rows used."""

    def __init__(
        self,
        bad: dict[int, str],
        num: int,
        boxes_BV4: np.ndarray,
        colours: Sequence[Any],
        specs: Sequence[ViewSpec],
        sides: tuple[int, int],
    ) -> None:
        self._bad = bad
        self.arrays = [np.zeros(num, np.int64)]
        self.parameters = [drawn.rows(spec) for drawn, spec in zip(colours, specs, strict=True)]
        corners = np.concatenate([boxes_BV4[..., :2], boxes_BV4[..., :2] + boxes_BV4[..., 2:]], axis=-1)
        flipped_BV1 = np.stack([drawn.flipped for drawn in colours], axis=1)[..., None]
        self.geometry_VB5 = np.concatenate([corners / np.array(sides * 2), flipped_BV1], axis=-1).swapaxes(0, 1)
        self.geometry_VB5 = np.ascontiguousarray(self.geometry_VB5, np.float32)

    def fill(self, index: int, data: Any) -> None:
        """Takes the row whose id the bytes are. Raises BadImage."""
        row_id = int.from_bytes(data, "little")
        if row_id in self._bad:
            raise BadImage(self._bad[row_id])
        self.arrays[0][index] = row_id


def crop_batch(images_BCHW: Tensor, geometry_B5: Tensor, size: int, *, cubic: bool = False) -> Tensor:
    """Resamples a crop of each image to uint8 [B, C, size, size], antialiased, as `pretrain.data.crop_kernels.crop` does.

    A crop is two matrix products with the filter's weights, one for each axis.

    Args:
        images_BCHW: float.
        geometry_B5: left, top, right and bottom as shares of the sides, and 1 where a view is mirrored.
    """
    left, top, right, bottom, flipped = geometry_B5.unbind(1)
    height, width = images_BCHW.shape[2:]
    weights_BSW = _weights(left * width, right * width, width, size, cubic)
    weights_BSW = torch.where(flipped.view(-1, 1, 1) > 0, weights_BSW.flip(1), weights_BSW)
    weights_BSH = _weights(top * height, bottom * height, height, size, cubic)
    across = torch.einsum("bchw,bsw->bchs", images_BCHW, weights_BSW)
    return torch.einsum("bchs,bth->bcts", across, weights_BSH).add_(0.5).clamp_(0, 255).byte()


def _weights(low_B: Tensor, high_B: Tensor, num_in: int, num_out: int, cubic: bool) -> Tensor:
    scale_B11 = ((high_B - low_B) / num_out).view(-1, 1, 1)
    places_S1 = torch.arange(num_out, device=low_B.device).view(-1, 1) + 0.5
    centres_BS1 = low_B.view(-1, 1, 1) + places_S1 * scale_B11
    pixels = torch.arange(num_in, device=low_B.device) + 0.5
    x = (pixels - centres_BS1).abs() / scale_B11.clamp_min(1)
    if cubic:
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights_BSN = torch.where(x < 1, near, torch.where(x < 2, far, 0))
    else:
        weights_BSN = (1 - x).clamp_min(0)
    return weights_BSN / weights_BSN.sum(2, keepdim=True)
