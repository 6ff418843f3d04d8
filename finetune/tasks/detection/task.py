"""Detection during training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.errors import UserError
from cluster.training.rank_context import RankContext
from finetune.settings import FinetuneSettings
from finetune.tasks.base import Task
from finetune.tasks.detection.boxes import (
    TargetReader,
    boxes_column_of,
    check_boxes,
    classes_of,
    look_at_shapes,
    take_census,
)
from finetune.tasks.detection.fitting import check_strides, fit_anchors, fit_strides
from finetune.tasks.detection.hard_attention import make_attention_hard
from finetune.tasks.detection.heads import Targets
from finetune.tasks.detection.metrics import NAMES
from finetune.tasks.detection.model import Detector
from finetune.tasks.detection.predictor import ObjectDetector
from finetune.tasks.detection.views import MIN_SIDE, BoxViewer, boxes_on_canvas
from pretrain.data.reading.loader import Batch
from pretrain.data.reading.manifest import Manifest
from pretrain.data.reading.shards import Shards
from pretrain.data.views.recipes import ViewSpec
from pretrain.data.views.viewing import Viewer
from pretrain.encoders import Encoder
from pretrain.encoders.sources import EncoderSource
from pretrain.training.feeding import uploaded

IMAGES_LOOKED_AT = 1000  # whose sizes fit strides and anchors


class Detection(Task):
    """Boxes and their classes, from a column of objects."""

    best_metric = "map"
    metric_names = tuple(NAMES)
    predictor = ObjectDetector

    @staticmethod
    def columns_of(settings: FinetuneSettings) -> dict[str, str]:
        """The column of boxes."""
        return {"objects": settings.detection.objects_column}

    def __init__(self, settings: FinetuneSettings, train: Manifest, validation: Manifest) -> None:
        detection = settings.detection
        self.settings, self.columns = detection, self.columns_of(settings)
        self._train, self._validation = (
            Shards(manifest, image_column=settings.data.image_column, columns=[detection.objects_column])
            for manifest in (train, validation)
        )
        if not detection.min_scale <= detection.max_scale:
            raise UserError(
                f"detection.min_scale={detection.min_scale:g} is above "
                f"detection.max_scale={detection.max_scale:g}"
            )
        self._max_left_out = settings.data.max_bad_fraction
        of_train, of_validation = self._censuses = tuple(
            take_census(
                shards, boxes_column_of(shards.manifest, detection.objects_column, detection.box_format)
            )
            for shards in (self._train, self._validation)
        )
        self.classes = classes_of(of_train, of_validation)
        self._reader = TargetReader(of_train.column, self.classes)
        self.config = {
            "class_names": self.classes.names,
            "class_values": list(self.classes.values),
            "box_format": detection.box_format,
            "score_threshold": detection.score_threshold,
        }
        self.notes = [
            f"{census.num_boxes:,} boxes of {len(census.boxes_of_class)} classes in {census.num_rows:,} "
            f"{name} images ({census.num_without:,} without any)"
            + (
                f"; left out: {census.left_out} (first: {census.left_out.locations[0]})"
                if census.left_out.counts
                else ""
            )
            for name, census in (("training", of_train), ("validation", of_validation))
        ]
        self.findings: dict[str, Any] = {
            "training_boxes": of_train.num_boxes,
            "training_boxes_left_out": of_train.left_out.as_json(),
        }

    def config_for(self, encoder: Encoder, size: int) -> dict[str, Any]:
        """With strides and anchors fitted to the boxes at this size.

        Raises UserError where boxes are not what they are read as, or none is large enough to be learnt.
        """
        detection = self.settings
        looked = [
            look_at_shapes(shards, self._reader.column, IMAGES_LOOKED_AT, channels=encoder.in_channels)
            for shards in (self._train, self._validation)
        ]
        for shards, census, shapes in zip(
            (self._train, self._validation), self._censuses, looked, strict=True
        ):
            check_boxes(census, shapes, shards.manifest.files[0].url, max_left_out=self._max_left_out)
        shapes_N2, outside = looked[0].fractions_N2, looked[0].outside
        if not len(shapes_N2):
            raise UserError(
                f"no image of {self._train.manifest.files[0].url} that can be opened has a box inside of "
                f"it; boxes are read as {detection.box_format} in pixels (detection.box_format)"
            )
        self._check_sizes(shapes_N2, size)
        shapes_N2 = shapes_N2[(shapes_N2 * size >= MIN_SIDE).all(1)]
        self.findings["boxes_outside_of_pictures_looked_at"] = outside.as_json()
        strides = list(detection.strides) or fit_strides(np.sqrt(shapes_N2.prod(1)) * size, encoder.strides)
        check_strides(strides, encoder.strides)
        anchors = fit_anchors(shapes_N2 * size, len(strides), detection.anchors_per_position)
        return self.config | {
            "strides": strides,
            "anchors": anchors,
            "head": detection.head,
            "channels": detection.channels,
            "depth": detection.depth,
            "max_detections": detection.max_detections,
            "hard_attention_keys": detection.hard_attention_keys,
            "hard_attention_stages": detection.hard_attention_stages,
        }

    def _check_sizes(self, shapes_N2: np.ndarray, size: int) -> None:
        """Counts the boxes that are too small at this size, and says so. Raises UserError where all are."""
        sides_N = shapes_N2.min(1) * size
        num = int((sides_N < MIN_SIDE).sum())
        if not num:
            return
        # the size at which nine tenths of the boxes would be seen
        enough = math.ceil(MIN_SIDE / max(1e-6, float(np.quantile(shapes_N2.min(1), 0.1))))
        told = (
            f"{num:,} of {len(sides_N):,} boxes that were looked at are smaller than {MIN_SIDE:g} pixels at "
            f"image_size={size} and cannot be learnt; image_size={enough} would show most of them"
        )
        if num == len(sides_N):
            raise UserError(f"{told}, or cut the images into tiles")
        self.findings["boxes_too_small_of_those_looked_at"] = num
        if told not in self.notes:
            self.notes = [*self.notes, told]

    @classmethod
    def new_model(cls, encoder: Encoder, config: dict[str, Any]) -> Detector:
        """An encoder, a pyramid and a head."""
        if config["hard_attention_keys"]:
            make_attention_hard(
                encoder, num_keys=config["hard_attention_keys"], num_stages=config["hard_attention_stages"]
            )
        names = ("head", "strides", "anchors", "channels", "depth", "max_detections", "mode")
        return Detector(
            encoder, num_classes=len(config["class_names"]), **{name: config[name] for name in names}
        )

    def views(self, size: int) -> list[ViewSpec]:
        """A flip and mild colours; the window is drawn by `viewer`."""
        colour = self.settings.colour
        return [
            ViewSpec(
                size=size,
                flip=self.settings.flip,
                jitter=0.8 if colour else 0.0,
                brightness=0.4 * colour,
                contrast=0.4 * colour,
                saturation=0.4 * colour,
                hue=0.1 * colour,
                grey=0.0,
                blur=0.0,
            )
        ]

    def viewer(
        self, settings: FinetuneSettings, source: EncoderSource, size: int, context: RankContext
    ) -> Viewer:
        """Random windows onto the images."""
        detection = self.settings
        return BoxViewer(
            self.views(size)[0],
            scale=(detection.min_scale, detection.max_scale),
            flip_vertical=detection.flip_vertical,
            keep=settings.data.keep,
            keep_bytes=settings.data.keep_bytes,
            seed=settings.seed,
            device=context.device,
            channels=source.encoder.in_channels,
            mean=source.mean,
            std=source.std,
        )

    def to_inputs(self, images: list[Tensor], batch: Batch, device: torch.device) -> tuple[Tensor, Targets]:
        """Images, and the boxes that are still seen in them."""
        assert batch.geometry_VB5 is not None
        size, targets = images[0].shape[-1], []
        for index, value in enumerate(batch.columns[self.columns["objects"]]):
            geometry_25 = batch.geometry_VB5[:, index]
            width, height = geometry_25[1, 2:4].tolist()
            target, _ = self._reader.read(value, width=width, height=height)
            boxes_N4, keep_N = boxes_on_canvas(
                target.xyxy_N4, geometry_25, size, min_visible=self.settings.min_visible
            )
            targets.append(
                {
                    "boxes": uploaded(boxes_N4[keep_N], device),
                    "labels": uploaded(target.classes_N[keep_N], device),
                }
            )
        return images[0], targets
