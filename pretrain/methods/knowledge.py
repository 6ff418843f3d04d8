"""A teacher's features of the images of a batch: read from storage, or computed in each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.errors import UserError, choose
from pretrain.data.reading.feature_description import describe_features
from pretrain.data.reading.feature_layout import FEATURES, MAPS
from pretrain.data.reading.loader import Batch
from pretrain.data.views.augment import channel_values
from pretrain.encoders.looking import Look
from pretrain.encoders.teachers import Teacher, open_teacher
from pretrain.training import distributed
from pretrain.training.feeding import uploaded

Shape = Sequence[int]  # height and width of a map
Normalisation = tuple[Sequence[float], Sequence[float]]  # mean and deviation of each channel

SEES = ("views", "whole")
SAMPLES_A_CELL = 2  # of a stored map, along each side of a student's cell: its cells may be the smaller ones


class Said(NamedTuple):
    """A teacher's features of the images of a batch.
    What is stored or seen once an image has one entry, else one a view.

    Attributes:
        pooled: features [B, D] each.
        maps: [B, C, H, W] of each level, of each.
        geometry_VB5: where each view lies in the image, see `pretrain.data.views.random_views.ViewFilling`;
            for maps of whole images.
    """

    pooled: list[Tensor]
    maps: list[list[Tensor]]
    geometry_VB5: Tensor | None = None

    def over_all_ranks(self) -> Said:
        """The same of the global batch."""
        gather = distributed.gathered
        geometry = self.geometry_VB5
        return Said(
            [gather(part) for part in self.pooled],
            [[gather(level) for level in maps] for maps in self.maps],
            None if geometry is None else gather(geometry.transpose(0, 1)).transpose(0, 1),
        )


class Knowledge(nn.Module):
    """A teacher's knowledge.

    Attributes:
        dim: of the targets.
        map_channels: of the map that each of the student's last maps shall predict; empty where there are
            none.
        described: the teacher, see `pretrain.encoders.teaching.Teacher.described`.
        features_url, columns: what is to be read beside the rows, if anything is.
    """

    dim: int
    map_channels: list[int]
    described: dict[str, Any]
    features_url: str | None = None
    columns: Sequence[str] = ()

    def of(
        self, views: list[Tensor], batch: Batch, normalisation: Normalisation
    ) -> tuple[list[Tensor], Said]:
        """The views that the student sees, normalised, and the teacher's features of them."""
        raise NotImplementedError

    def targets(self, said: Said, num_views: int) -> list[Tensor]:
        """What is to be predicted of each view as a whole, of length 1, [B, dim]."""
        raise NotImplementedError

    def map_targets(self, said: Said, shapes: list[list[Shape]]) -> list[list[Tensor]]:
        """What to predict in each cell of the student's maps of these shapes, [B, C, H, W], view by view."""
        raise NotImplementedError


class StoredKnowledge(Knowledge):
    """Features that `python -m pretrain embed` left.

    Pooled features are centred, turned to `target_dim` principal directions at most, and each is divided by
    its standard deviation to the power `whitening`.
    """

    def __init__(
        self, url: str, *, with_maps: bool, target_dim: int, whitening: float, num_levels: int
    ) -> None:
        super().__init__()
        described = describe_features(url)
        if with_maps and described.maps is None:
            raise UserError(
                f"method.arguments.map_weight needs maps, and {url} holds none; make them with: "
                "python -m pretrain embed TEACHER DATA OUT --maps CELLS"
            )
        if with_maps and not described.images.get("whole_image"):
            raise UserError(
                f"method.arguments.map_weight needs maps of whole images, and those in {url} are of central "
                "crops; make them without --crop-fraction"
            )
        self.described = described.teacher
        self.features_url, self.columns = url, [FEATURES, MAPS] if with_maps else [FEATURES]
        statistics = described.statistics
        self.dim = min(target_dim, statistics["eigenvectors"].shape[1])
        deviations_K = torch.from_numpy(statistics["deviations"][: self.dim].astype(np.float32))
        self.mean_D: Tensor
        self.directions_DK: Tensor
        self.register_buffer("mean_D", torch.from_numpy(statistics["mean"].astype(np.float32)))
        # directions in which nothing differs say nothing, and would be divided by nearly 0
        scale_K = deviations_K.clamp_min(1e-4 * float(deviations_K.max())) ** -whitening
        directions_DK = (
            torch.from_numpy(statistics["eigenvectors"][:, : self.dim].astype(np.float32)) * scale_K
        )
        self.register_buffer("directions_DK", directions_DK)
        self.map_channels = []
        if with_maps and described.maps is not None:
            self.map_channels = [described.maps.channels] * num_levels

    def of(
        self, views: list[Tensor], batch: Batch, normalisation: Normalisation
    ) -> tuple[list[Tensor], Said]:
        """All views are the student's; what is stored is of the whole image."""
        device = views[0].device
        said = Said([_stacked(batch, FEATURES, device)], [])
        if MAPS in self.columns:
            assert batch.geometry_VB5 is not None
            geometry_VB5 = uploaded(np.ascontiguousarray(batch.geometry_VB5), device)
            said = Said(said.pooled, [[_stacked(batch, MAPS, device)]], geometry_VB5)
        return views, said

    @torch.no_grad()
    def targets(self, said: Said, num_views: int) -> list[Tensor]:
        """The same for all views of an image."""
        centred_BD = said.pooled[0].to(self.mean_D) - self.mean_D
        # not in bfloat16, where the rounding of strong directions is noise in the weak ones
        with torch.autocast(centred_BD.device.type, enabled=False):
            target_BK = F.normalize(centred_BD @ self.directions_DK, dim=1)
        return [target_BK] * num_views

    @torch.no_grad()
    def map_targets(self, said: Said, shapes: list[list[Shape]]) -> list[list[Tensor]]:
        """The parts of the stored map that the views show."""
        assert said.geometry_VB5 is not None
        map_BCHW = said.maps[0][0]
        return [
            [seen_part(map_BCHW, geometry_B5, shape) for shape in of_view]
            for geometry_B5, of_view in zip(said.geometry_VB5, shapes, strict=True)
        ]


class LiveKnowledge(Knowledge):
    """A teacher that looks at each batch.

    It is no part of the state: it is frozen, and is opened again when a run goes on. Its features and the
    channels of its maps are standardised by the statistics of batches.
    """

    _like: Tensor

    def __init__(self, name: str, *, sees: str, with_maps: bool, student_strides: Sequence[int]) -> None:
        super().__init__()
        teacher = open_teacher(name)
        self.sees, self.described, self.dim = sees, teacher.described(), teacher.dim
        self._teacher: list[Teacher] = [teacher]  # in a list, so that its weights are none of ours
        self._at: Look | None = None
        self._levels: list[int] = []
        if with_maps:
            if not teacher.strides:
                raise UserError(
                    f"method.arguments.map_weight needs a teacher with maps, and {name} has none"
                )
            if sees == "whole":
                self._levels = [len(teacher.strides) - 1] * len(student_strides)
            else:
                self._levels = [_nearest(stride, teacher.strides) for stride in student_strides]
        self.map_channels = [teacher.channels[level] for level in self._levels]
        self.norm = nn.BatchNorm1d(teacher.dim, affine=False)
        self.register_buffer("_like", torch.zeros(()), persistent=False)  # of the dtype that we were cast to
        self.map_norms = nn.ModuleList(
            nn.BatchNorm2d(channels, affine=False) for channels in self.map_channels
        )

    def of(
        self, views: list[Tensor], batch: Batch, normalisation: Normalisation
    ) -> tuple[list[Tensor], Said]:
        """The teacher looks at the student's views, or at the last view in their place."""
        mine = views if self.sees == "views" else views[:-1]
        if not mine:
            raise UserError(
                "method.arguments.sees=whole needs views.arguments={whole_size: PIXELS}: a view for the "
                "teacher alone"
            )
        outputs = [
            self._look(view, normalisation) for view in (mine if self.sees == "views" else views[-1:])
        ]
        geometry_VB5 = None
        if self.sees == "whole" and self._levels:
            assert batch.geometry_VB5 is not None
            geometry_VB5 = uploaded(np.ascontiguousarray(batch.geometry_VB5[:-1]), views[0].device)
        return mine, Said([pooled for pooled, _ in outputs], [maps for _, maps in outputs], geometry_VB5)

    @torch.no_grad()
    def _look(self, images_BCHW: Tensor, normalisation: Normalisation) -> tuple[Tensor, list[Tensor]]:
        teacher = self._teacher[0]
        device, images_BCHW = images_BCHW.device, images_BCHW.float()
        if self._at is None or self._at.device != device:
            self._at = Look(teacher, device, dtype=torch.bfloat16)
        look = self._at
        size = teacher.input_size
        # a network that never saw things so small knows little of them
        if images_BCHW.shape[-1] < size // 2:
            images_BCHW = F.interpolate(
                images_BCHW, size=(size // 2, size // 2), mode="bilinear", antialias=True
            )
        images_BCHW = self._as_its_own(images_BCHW, normalisation)
        outputs = [look.at(images) for images in images_BCHW.split(look.images_per_pass)]
        pooled_BD = torch.cat([output.pooled_BD for output in outputs])
        return pooled_BD, [torch.cat([output.maps[level] for output in outputs]) for level in self._levels]

    def _as_its_own(self, images_BCHW: Tensor, normalisation: Normalisation) -> Tensor:
        """Normalised as the teacher's images are, where they were as the student's are."""
        teacher, device = self._teacher[0], images_BCHW.device
        mean, std = (channel_values(tuple(values), device) for values in (teacher.mean, teacher.std))
        own_mean, own_std = (channel_values(tuple(values), device) for values in normalisation)
        return (images_BCHW * own_std + own_mean - mean) / std

    @torch.no_grad()
    def targets(self, said: Said, num_views: int) -> list[Tensor]:
        """Of each view its own, or for all views the same of the whole image."""
        targets = [F.normalize(self.norm(pooled_BD.to(self._like)), dim=1) for pooled_BD in said.pooled]
        return targets if len(targets) == num_views else targets * num_views

    @torch.no_grad()
    def map_targets(self, said: Said, shapes: list[list[Shape]]) -> list[list[Tensor]]:
        """The teacher's maps in the student's cells."""
        normed = [
            [norm(level.to(self._like)) for norm, level in zip(self.map_norms, maps, strict=True)]
            for maps in said.maps
        ]
        if said.geometry_VB5 is None:
            return [
                [_resized(level, shape) for level, shape in zip(maps, of_view, strict=True)]
                for maps, of_view in zip(normed, shapes, strict=True)
            ]
        return [
            [seen_part(level, geometry_B5, shape) for level, shape in zip(normed[0], of_view, strict=True)]
            for geometry_B5, of_view in zip(said.geometry_VB5, shapes, strict=True)
        ]


def open_knowledge(
    features: str | None,
    teacher: str | None,
    *,
    sees: str,
    with_maps: bool,
    target_dim: int,
    whitening: float,
    student_strides: Sequence[int],
) -> Knowledge:
    """Stored features or a live teacher. Raises UserError for neither, both, or one that cannot be had."""
    choose("method.arguments.sees", sees, SEES)
    if (features is None) == (teacher is None):
        raise UserError(
            "distill needs a teacher: give method.arguments.features=URL (made by python -m pretrain embed "
            "TEACHER DATA OUT) or method.arguments.teacher=NAME, not both"
        )
    if features is not None:
        if sees != "views":
            raise UserError(
                "method.arguments.sees is for a live teacher; stored features are of whole images anyway"
            )
        return StoredKnowledge(
            features,
            with_maps=with_maps,
            target_dim=target_dim,
            whitening=whitening,
            num_levels=len(student_strides),
        )
    assert teacher is not None
    return LiveKnowledge(teacher, sees=sees, with_maps=with_maps, student_strides=student_strides)


def seen_part(map_BCHW: Tensor, geometry_B5: Tensor, shape: Shape) -> Tensor:
    """The part of a map of whole images that a view shows, in height x width cells of the view.

    Args:
        geometry_B5: left, top, right and bottom of the view as fractions of the image's sides,
            and 1 where it is mirrored.
    """
    height, width = (side * SAMPLES_A_CELL for side in shape)
    left, top, right, bottom, mirrored = (column[:, None] for column in geometry_B5.T)
    across_W = (torch.arange(width, device=map_BCHW.device) + 0.5) / width
    down_H = (torch.arange(height, device=map_BCHW.device) + 0.5) / height
    across_BW = torch.where(mirrored > 0, 1 - across_W, across_W)
    x_BW, y_BH = left + across_BW * (right - left), top + down_H * (bottom - top)
    batch = len(map_BCHW)
    grid_BHW2 = torch.stack(
        [x_BW[:, None, :].expand(batch, height, width), y_BH[:, :, None].expand(batch, height, width)],
        dim=-1,
    )
    sampled = F.grid_sample(map_BCHW, 2 * grid_BHW2 - 1, padding_mode="border", align_corners=False)
    return F.avg_pool2d(sampled, SAMPLES_A_CELL)


def _resized(map_BCHW: Tensor, shape: Shape) -> Tensor:
    height, width = shape
    if map_BCHW.shape[-2] >= height and map_BCHW.shape[-1] >= width:
        return F.adaptive_avg_pool2d(map_BCHW, (height, width))
    return F.interpolate(map_BCHW, size=(height, width), mode="bilinear", align_corners=False)


def _stacked(batch: Batch, column: str, device: torch.device) -> Tensor:
    return uploaded(np.stack(batch.columns[column]), device).float()


def _nearest(stride: int, strides: Sequence[int]) -> int:
    return min(range(len(strides)), key=lambda index: abs(math.log2(strides[index] / stride)))
