"""torchvision's detectors without their backbone: losses and detections of the maps of a pyramid.

Batch norm is nowhere: FCOS and RetinaNet have group norm, Faster R-CNN's heads none.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from finetune.tasks.detection.pyramid import GROUPS

MIN_SCORE = 0.01  # less sure detections are not worth their place in a precision-recall curve
CANDIDATES = 400  # a level, before non-maximum suppression
FIRST_REACH = 2.0  # of FCOS, see there
POOLED_SIDE = 7  # of a region of Faster R-CNN

Targets = list[dict[str, Tensor]]
"""An image's `boxes` [N, 4] on the canvas and `labels` [N], class ids from 0."""


class Anchors(AnchorGenerator):
    """Anchors of given widths and heights at the centres of each map's positions.

    torchvision's lie at the upper left corners of positions and must be products of sizes and ratios.

    Args:
        strides: of the maps.
        shapes: for each map the width and height of its anchors, in pixels; equally many for all.
    """

    def __init__(self, strides: Sequence[int], shapes: Sequence[Sequence[Sequence[float]]]) -> None:
        super().__init__(sizes=((1,),) * len(strides), aspect_ratios=((1.0,),) * len(strides))
        self.strides = list(strides)
        self.shapes = [[list(shape) for shape in of_level] for of_level in shapes]

    def num_anchors_per_location(self) -> list[int]:
        """Anchors at each position, by map."""
        return [len(of_level) for of_level in self.shapes]

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The same anchors [A, 4] for each image, maps one after the other, in float32."""
        device = feature_maps[0].device
        anchors: list[Tensor] = []
        for feature_map, stride, shapes in zip(feature_maps, self.strides, self.shapes, strict=True):
            corners = [
                [(stride - w) / 2, (stride - h) / 2, (stride + w) / 2, (stride + h) / 2] for w, h in shapes
            ]
            height, width = feature_map.shape[-2:]
            down, across = torch.meshgrid(
                torch.arange(height, dtype=torch.float32, device=device) * stride,
                torch.arange(width, dtype=torch.float32, device=device) * stride,
                indexing="ij",
            )
            positions_P4 = torch.stack([across.flatten(), down.flatten()] * 2, 1)
            around_zero = torch.tensor(corners, dtype=torch.float32, device=device)
            anchors.append((positions_P4[:, None] + around_zero).flatten(0, 1))
        return [torch.cat(anchors)] * len(image_list.image_sizes)


class Head(nn.Module):
    """What finds boxes on the maps of a pyramid."""

    @abstractmethod
    def losses(self, images: ImageList, maps: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """The parts of the loss, by name. Call in training mode."""

    @abstractmethod
    def detections(self, images: ImageList, maps: list[Tensor]) -> list[dict[str, Tensor]]:
        """Of each image `boxes` [N, 4] inside `images.image_sizes`, `scores` and `labels`, surest first."""


class NoBackbone(nn.Identity):
    """What torchvision's detectors ask of a backbone when they are built."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels


class OneStageHead(Head):
    """Classes and boxes right at the positions of the maps."""

    def __init__(self, detector: FCOS | RetinaNet) -> None:
        super().__init__()
        self.detector = detector

    def _outputs(self, maps: list[Tensor]) -> dict[str, Tensor]:
        # losses and boxes in float32, whatever the convolutions were computed in
        return {name: output.float() for name, output in self.detector.head(maps).items()}

    def losses(self, images: ImageList, maps: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Classification, boxes, and centreness for FCOS."""
        anchors = self.detector.anchor_generator(images, maps)
        more = () if isinstance(self.detector, RetinaNet) else (self._positions(maps),)
        losses: dict[str, Tensor] = self.detector.compute_loss(targets, self._outputs(maps), anchors, *more)
        return losses

    def detections(self, images: ImageList, maps: list[Tensor]) -> list[dict[str, Tensor]]:
        """After non-maximum suppression."""
        positions = [
            num * self.detector.anchor_generator.num_anchors_per_location()[0]
            for num in self._positions(maps)
        ]
        outputs = {
            name: list(output.split(positions, dim=1)) for name, output in self._outputs(maps).items()
        }
        anchors = [list(a.split(positions)) for a in self.detector.anchor_generator(images, maps)]
        found: list[dict[str, Tensor]] = self.detector.postprocess_detections(
            outputs, anchors, images.image_sizes
        )
        return found

    def _positions(self, maps: list[Tensor]) -> list[int]:
        return [one.shape[2] * one.shape[3] for one in maps]


class TwoStageHead(Head):
    """Faster R-CNN: candidate boxes from the maps, then each is looked at again.
    Its class 0 is the background.
    """

    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__()
        self.rpn, self.roi_heads = detector.rpn, detector.roi_heads

    def losses(self, images: ImageList, maps: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Objectness and boxes of the candidates, classes and boxes of the final ones."""
        shifted = [{**target, "labels": target["labels"] + 1} for target in targets]
        with _in_float32(maps) as named:
            proposals, of_proposals = self.rpn(images, named, shifted)
            _, of_boxes = self.roi_heads(named, proposals, images.image_sizes, shifted)
        return {name.removeprefix("loss_"): loss for name, loss in {**of_proposals, **of_boxes}.items()}

    def detections(self, images: ImageList, maps: list[Tensor]) -> list[dict[str, Tensor]]:
        """After non-maximum suppression."""
        with _in_float32(maps) as named:
            proposals, _ = self.rpn(images, named)
            found, _ = self.roi_heads(named, proposals, images.image_sizes)
        return [{**one, "labels": one["labels"] - 1} for one in found]


@contextmanager
def _in_float32(maps: list[Tensor]) -> Iterator[dict[str, Tensor]]:
    """Without autocast: torchvision would round anchors and candidates, which are pixels, to bfloat16."""
    with torch.autocast(maps[0].device.type, enabled=False):
        yield OrderedDict((str(level), one.float()) for level, one in enumerate(maps))


def fcos(
    *, num_classes: int, channels: int, depth: int, strides: Sequence[int], max_detections: int, **_: Any
) -> Head:
    """FCOS (https://arxiv.org/abs/1904.01355): no anchors, each position says how far the four edges are.

    A level is for boxes up to eight of its strides around a position, as in the paper.
    """
    head = FCOSHead(channels, 1, num_classes, num_convs=depth)
    # a position starts from a box of some size: from none at all,
    # the ReLU behind would pass no gradient at half of them
    nn.init.constant_(head.regression_head.bbox_reg.bias, FIRST_REACH)
    generator = Anchors(strides, [[[stride, stride]] for stride in strides])
    return _one_stage(FCOS, channels, num_classes, generator, head, max_detections)


def retinanet(
    *,
    num_classes: int,
    channels: int,
    depth: int,
    strides: Sequence[int],
    anchors: Sequence[Sequence[Sequence[float]]],
    max_detections: int,
) -> Head:
    """RetinaNet (https://arxiv.org/abs/1708.02002): focal loss over anchors."""
    generator = Anchors(strides, anchors)
    norm = partial(nn.GroupNorm, GROUPS)
    head = RetinaNetHead(channels, generator.num_anchors_per_location()[0], num_classes, norm_layer=norm)
    for part in (head.classification_head, head.regression_head):
        part.conv = part.conv[:depth]
    return _one_stage(RetinaNet, channels, num_classes, generator, head, max_detections)


def _one_stage(
    kind: type[FCOS | RetinaNet],
    channels: int,
    num_classes: int,
    generator: Anchors,
    head: nn.Module,
    max_detections: int,
) -> Head:
    limits = {"score_thresh": MIN_SCORE, "topk_candidates": CANDIDATES, "detections_per_img": max_detections}
    return OneStageHead(
        kind(NoBackbone(channels), num_classes, anchor_generator=generator, head=head, **limits)
    )


def faster_rcnn(
    *,
    num_classes: int,
    channels: int,
    depth: int,
    strides: Sequence[int],
    anchors: Sequence[Sequence[Sequence[float]]],
    max_detections: int,
) -> Head:
    """Faster R-CNN (https://arxiv.org/abs/1506.01497) over a feature
    pyramid (https://arxiv.org/abs/1612.03144).

    The second stage is four times as wide as the maps, as torchvision's 1024 for 256 channels; of an image
    128 candidates are learnt from, as in the first paper.
    """
    generator, width = Anchors(strides, anchors), 4 * channels
    pool = MultiScaleRoIAlign([str(level) for level in range(len(strides))], POOLED_SIDE, sampling_ratio=2)
    # it would guess the strides from the size of an image, which a letterboxed one does not fill
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(*(int(math.log2(stride)) for stride in (strides[0], strides[-1])))
    detector = FasterRCNN(
        NoBackbone(channels),
        rpn_anchor_generator=generator,
        rpn_head=RPNHead(channels, generator.num_anchors_per_location()[0], conv_depth=depth),
        rpn_pre_nms_top_n_train=CANDIDATES,
        rpn_pre_nms_top_n_test=CANDIDATES,
        rpn_post_nms_top_n_train=CANDIDATES,
        rpn_post_nms_top_n_test=CANDIDATES,
        rpn_batch_size_per_image=128,
        box_roi_pool=pool,
        box_head=TwoMLPHead(channels * POOLED_SIDE**2, width),
        box_predictor=FastRCNNPredictor(width, num_classes + 1),
        box_batch_size_per_image=128,
        box_score_thresh=MIN_SCORE,
        box_detections_per_img=max_detections,
    )
    return TwoStageHead(detector)


HEADS: dict[str, Callable[..., Head]] = {"fcos": fcos, "retinanet": retinanet, "faster_rcnn": faster_rcnn}
