"""Detection of a whole batch at once, without loops over images or numbers of boxes that the data decides,
as ONNX wants it.

It computes what torchvision's detectors do image by image (`finetune.tasks.detection.heads`): candidates are
the surest of each level, a non-maximum suppression for each class follows,
and the surest that are left are given.

Shapes: B images, P positions of all anchors, N candidates, C classes, M detections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import nms, roi_align

from finetune.tasks.detection.heads import MIN_SCORE, OneStageHead
from finetune.tasks.detection.model import Detector
from pretrain.exporting.exported import SIZES, ForPixels

MIN_REGION, MIN_BOX = 1e-3, 1e-2  # pixels of a side, as in torchvision
ALL = 2**63 - 1  # boxes of a class


@torch.library.custom_op(
    "fovea::suppressed",
    mutates_args=(),
    schema="(Tensor boxes_GN4, Tensor scores_GKN, float overlap, float min_score) -> Tensor",
)
def suppressed(boxes_GN4: Tensor, scores_GKN: Tensor, overlap: float, min_score: float) -> Tensor:
    """int64 [selected, 3]: group, class and number of the boxes that non-maximum suppression keeps, by
    classes in groups; those of a score of at most `min_score` count for nothing."""
    kept = [torch.zeros(0, 3, dtype=torch.int64)]
    for group, (boxes_N4, scores_KN) in enumerate(zip(boxes_GN4, scores_GKN, strict=True)):
        for number, scores_N in enumerate(scores_KN):
            some = torch.where(scores_N > min_score)[0]
            own = some[nms(boxes_N4[some], scores_N[some], overlap)]
            kept.append(torch.stack([torch.full_like(own, group), torch.full_like(own, number), own], 1))
    return torch.cat(kept)


@suppressed.register_fake
def _(boxes_GN4: Tensor, scores_GKN: Tensor, overlap: float, min_score: float) -> Tensor:
    return boxes_GN4.new_empty((torch.library.get_ctx().new_dynamic_size(), 3), dtype=torch.int64)


class BatchedDetector(ForPixels):
    """A detector's boxes, scores and labels for square canvases with values in [0, 1].

    Args:
        model: a detector.
        mean, std: of its images.
        size: of its canvases.
    """

    output_names = ("boxes", "scores", "labels")

    def __init__(self, model: Detector, mean: Sequence[float], std: Sequence[float], *, size: int) -> None:
        super().__init__(mean, std)
        self.model = model
        head: Any = model.head
        self.max_detections: int = (
            head.detector if isinstance(head, OneStageHead) else head.roi_heads
        ).detections_per_img
        self.optional = {SIZES: torch.tensor([[float(size), float(size)]])}

    def translations(self) -> dict[Any, Any]:
        """Non-maximum suppression in ONNX's own words."""
        from onnxscript import opset18 as op

        def translated(boxes, scores, overlap: float, min_score: float):  # type: ignore[no-untyped-def]
            return op.NonMaxSuppression(boxes, scores, ALL, overlap, min_score)

        return {torch.ops.fovea.suppressed.default: translated}

    def forward(self, images_BCHW: Tensor, picture_sizes_B2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`boxes` [B, M, 4] in pixels of the canvas, `scores` [B, M] and `labels` [B, M], surest first;
        a score of 0 is no box.

        `picture_sizes_B2` are height and width of the images, in the upper left corners of their canvases.
        """
        images_BCHW = self.normalised(images_BCHW)
        maps = self.model.pyramid(self.model.encoder(images_BCHW))
        edges_B4 = torch.cat([picture_sizes_B2.flip(1), picture_sizes_B2.flip(1)], 1)
        head = self.model.head
        find = self._one_stage if isinstance(head, OneStageHead) else self._two_stages
        boxes_BN4, scores_BN, labels_BN = find(head, images_BCHW, maps, edges_B4[:, None])
        scores_BM, best_BM = scores_BN.topk(min(self.max_detections, scores_BN.shape[1]))
        some_BM = scores_BM > 0
        boxes_BM4 = boxes_BN4.gather(1, best_BM[..., None].expand(-1, -1, 4)) * some_BM[..., None]
        return boxes_BM4, scores_BM, torch.where(some_BM, labels_BN.gather(1, best_BM), -1)

    def _one_stage(
        self, head: Any, images_BCHW: Tensor, maps: list[Tensor], edges_B14: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """FCOS and RetinaNet: all candidates, those that are suppressed with a score of 0."""
        detector = head.detector
        outputs = {name: output.float() for name, output in detector.head(maps).items()}
        anchors_P4 = _anchors(detector.anchor_generator, images_BCHW, maps)
        per_position = detector.anchor_generator.num_anchors_per_location()[0]
        positions = [one.shape[2] * one.shape[3] * per_position for one in maps]
        scores_BPC = outputs["cls_logits"].sigmoid()
        if isinstance(detector, FCOS):
            scores_BPC = (scores_BPC * outputs["bbox_ctrness"].sigmoid()).sqrt()
        num_classes = scores_BPC.shape[-1]
        found = []
        for scores_BpC, deltas_Bp4, anchors_p4 in zip(
            scores_BPC.split(positions, 1),
            outputs["bbox_regression"].split(positions, 1),
            anchors_P4.split(positions),
            strict=True,
        ):
            flat_Bn = scores_BpC.flatten(1)
            scores_Bn, index_Bn = flat_Bn.topk(min(detector.topk_candidates, flat_Bn.shape[1]))
            position_Bn = index_Bn // num_classes
            deltas_Bn4 = deltas_Bp4.gather(1, position_Bn[..., None].expand(-1, -1, 4))
            boxes_Bn4 = _decoded(detector.box_coder, deltas_Bn4, anchors_p4[position_Bn])
            found.append((boxes_Bn4, scores_Bn, index_Bn % num_classes))
        boxes_BN4, scores_BN, labels_BN = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        boxes_BN4 = _inside(boxes_BN4, edges_B14)
        kept_BN = _kept(boxes_BN4, scores_BN, labels_BN, num_classes, detector.nms_thresh, MIN_SCORE)
        return boxes_BN4, torch.where(kept_BN, scores_BN, 0.0), labels_BN

    def _two_stages(
        self, head: Any, images_BCHW: Tensor, maps: list[Tensor], edges_B14: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Faster R-CNN: boxes of all regions and classes, those that are suppressed with a score of 0."""
        maps = [one.float() for one in maps]
        regions_BN4, is_region_BN = self._regions(head.rpn, images_BCHW, maps, edges_B14)
        roi, num_batch, num_regions = head.roi_heads, regions_BN4.shape[0], regions_BN4.shape[1]
        looked = roi.box_head(_pooled(roi.box_roi_pool, maps, regions_BN4))
        logits, deltas = roi.box_predictor(looked)
        num_classes = logits.shape[-1]
        scores_BNC = (
            logits.softmax(-1).view(num_batch, num_regions, num_classes)[..., 1:] * is_region_BN[..., None]
        )
        boxes = roi.box_coder.decode_single(deltas, regions_BN4.reshape(-1, 4))
        boxes_BNC4 = boxes.view(num_batch, num_regions, num_classes, 4)[:, :, 1:]
        boxes_BNC4 = _inside(boxes_BNC4, edges_B14[:, None])
        scores_BNC = scores_BNC * _large(boxes_BNC4, MIN_BOX)
        # each class of each image is a group of its own
        grouped = (
            boxes_BNC4.transpose(1, 2).reshape(-1, num_regions, 4),
            scores_BNC.transpose(1, 2).reshape(-1, num_regions),
        )
        kept = _kept(*grouped, torch.zeros_like(grouped[1], dtype=torch.int64), 1, roi.nms_thresh, MIN_SCORE)
        scores_BF = torch.where(kept, grouped[1], 0.0).view(num_batch, -1)
        labels_F = torch.arange(num_classes - 1, device=logits.device).repeat_interleave(num_regions)
        return grouped[0].view(num_batch, -1, 4), scores_BF, labels_F.expand(num_batch, -1)

    def _regions(
        self, rpn: Any, images_BCHW: Tensor, maps: list[Tensor], edges_B14: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where to look again: regions [B, N, 4] and which of them are some, bool [B, N]."""
        objectness, deltas = rpn.head(maps)
        anchors_P4 = _anchors(rpn.anchor_generator, images_BCHW, maps)
        found, start = [], 0
        for level, (score_BAHW, delta_BDHW) in enumerate(zip(objectness, deltas, strict=True)):
            score_Bp = score_BAHW.permute(0, 2, 3, 1).flatten(1)
            num_anchors = score_BAHW.shape[1]
            delta_Bp4 = delta_BDHW.unflatten(1, (num_anchors, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            anchors_p4, start = anchors_P4[start : start + score_Bp.shape[1]], start + score_Bp.shape[1]
            score_Bn, index_Bn = score_Bp.topk(min(rpn.pre_nms_top_n(), score_Bp.shape[1]))
            boxes_Bn4 = _decoded(
                rpn.box_coder,
                delta_Bp4.gather(1, index_Bn[..., None].expand(-1, -1, 4)),
                anchors_p4[index_Bn],
            )
            found.append((boxes_Bn4, score_Bn.sigmoid(), torch.full_like(index_Bn, level)))
        boxes_BN4, scores_BN, levels_BN = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        boxes_BN4 = _inside(boxes_BN4, edges_B14)
        scores_BN = scores_BN * _large(boxes_BN4, MIN_REGION)
        kept_BN = _kept(boxes_BN4, scores_BN, levels_BN, len(maps), rpn.nms_thresh, 0.0)
        scores_BN, best_BN = torch.where(kept_BN, scores_BN, 0.0).topk(
            min(rpn.post_nms_top_n(), scores_BN.shape[1])
        )
        return boxes_BN4.gather(1, best_BN[..., None].expand(-1, -1, 4)), scores_BN > 0


def _anchors(generator: Callable[..., list[Tensor]], images_BCHW: Tensor, maps: list[Tensor]) -> Tensor:
    """[P, 4], the same for each image."""
    return generator(ImageList(images_BCHW, [(0, 0)]), maps)[0]


def _decoded(coder: Any, deltas_BN4: Tensor, anchors_BN4: Tensor) -> Tensor:
    """Boxes [B, N, 4] from a head's outputs for anchors."""
    if hasattr(coder, "decode_single"):
        return coder.decode_single(deltas_BN4.reshape(-1, 4), anchors_BN4.reshape(-1, 4)).view(
            deltas_BN4.shape
        )
    decoded: Tensor = coder.decode(deltas_BN4, anchors_BN4)
    return decoded


def _inside(boxes: Tensor, edges: Tensor) -> Tensor:
    """Boxes cut at the edges of their images."""
    return torch.minimum(boxes.clamp(min=0), edges)


def _large(boxes: Tensor, min_side: float) -> Tensor:
    """1 for boxes both of whose sides are so long, else 0."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= min_side).all(-1).to(boxes.dtype)


def _kept(
    boxes_GN4: Tensor, scores_GN: Tensor, labels_GN: Tensor, num: int, overlap: float, min_score: float
) -> Tensor:
    """bool [G, N]: what non-maximum suppression keeps of each of `num` classes."""
    of_class = labels_GN[:, None] == torch.arange(num, device=labels_GN.device)[:, None]
    scores_GKN = torch.where(of_class, scores_GN[:, None], 0.0)
    chosen_S3 = torch.ops.fovea.suppressed(boxes_GN4, scores_GKN, overlap, min_score)
    positions_S = chosen_S3[:, 0] * boxes_GN4.shape[1] + chosen_S3[:, 2]
    kept = (
        torch.zeros_like(scores_GN)
        .flatten()
        .scatter(0, positions_S, torch.ones_like(positions_S, dtype=scores_GN.dtype))
    )
    return kept.view(scores_GN.shape) > 0


def _pooled(pool: Any, maps: list[Tensor], regions_BN4: Tensor) -> Tensor:
    """[B * N, channels, side, side] of each region from the map that suits its size,
    as MultiScaleRoIAlign.
    """
    num_batch, num_regions, _ = regions_BN4.shape
    images = torch.arange(num_batch, device=regions_BN4.device).to(regions_BN4.dtype)
    rois = torch.cat([images[:, None, None].expand(-1, num_regions, 1), regions_BN4], 2).reshape(-1, 5)
    side = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
    mapper = pool.map_levels
    level = torch.floor(mapper.lvl0 + torch.log2(side.clamp(min=1e-12).sqrt() / mapper.s0) + mapper.eps)
    level = level.clamp(mapper.k_min, mapper.k_max) - mapper.k_min
    total: Tensor | None = None
    for number, (one, scale) in enumerate(zip(maps, pool.scales, strict=True)):
        cut = roi_align(one, rois, pool.output_size, scale, pool.sampling_ratio)
        here = torch.where((level == number)[:, None, None, None], cut, 0.0)
        total = here if total is None else total + here
    assert total is not None
    return total
