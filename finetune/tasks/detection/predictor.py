"""A finished detector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from cluster.errors import UserError
from cluster.training.rank_context import RankContext
from finetune.image_inputs import ImageInput
from finetune.tasks.base import Evaluation, Predictor
from finetune.tasks.detection.boxes import LeftOut, TargetReader, boxes_column_of
from finetune.tasks.detection.metrics import EvaluatedImage, evaluated_scores
from finetune.tasks.detection.model import Detector
from finetune.tasks.detection.views import Letterbox, boxes_in_image, image_on_canvas
from pretrain.data.reading.labels import ClassNames
from pretrain.data.reading.loader import HostTransform
from pretrain.data.reading.shards import Shards
from pretrain.training.distributed import gathered_objects

BATCH = 16


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector finds in an image, surest first.

    Attributes:
        boxes_N4: float32, left, top, right and bottom in pixels of the image, upright.
        labels: class names.
        scores: float32 [N] in [0, 1].
    """

    boxes_N4: np.ndarray
    labels: list[str]
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[tuple[float, ...], str, float]]:
        """(box, label, score) of each."""
        for box, label, score in zip(self.boxes_N4.tolist(), self.labels, self.scores.tolist(), strict=True):
            yield tuple(box), label, score

    def above(self, score: float) -> Detections:
        """Those that are at least so sure."""
        keep = self.scores >= score
        labels = [label for label, kept in zip(self.labels, keep, strict=True) if kept]
        return Detections(self.boxes_N4[keep], labels, self.scores[keep])


class ObjectDetector(Predictor):
    """A detector with all it needs to predict for images. Images of any size and shape are seen whole."""

    result_type = Detections

    def host_transform(self) -> HostTransform:
        """Letterboxed images."""
        return Letterbox(self.config["image_size"], mean=self.config["mean"], channels=self.channels)

    @property
    def class_names(self) -> list[str]:
        """Texts of the classes, in the order of their ids."""
        return list(self.config["class_names"])

    def predict(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        batch_size: int = BATCH,
        score_threshold: float | None = None,
    ) -> list[Detections]:
        """`Detections` of each image, of at least `score_threshold`; without one the model's own.

        Raises UserError that names the image when one cannot be decoded.
        """
        min_score = self.config["score_threshold"] if score_threshold is None else score_threshold
        found = super().predict(images, batch_size=batch_size)
        return [detections.above(min_score) for detections in found]

    def results(self, arrays: list[np.ndarray], geometry_VB5: np.ndarray | None) -> list[Detections]:
        """All that is found in each image, however unsure."""
        assert geometry_VB5 is not None
        names = self.class_names
        return [
            Detections(boxes_N4, [names[index] for index in classes_N], scores_N)
            for boxes_N4, classes_N, scores_N in self.found(arrays[0], geometry_VB5)
        ]

    def found(
        self, canvases: np.ndarray, geometry_VB5: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """uint8 [B, C, size, size] -> of each image boxes [N, 4] in its pixels, class ids and scores [N],
        on the host.
        """
        size = self.config["image_size"]
        sizes = [image_on_canvas(geometry_VB5[:, index], size) for index in range(len(canvases))]
        results = []
        for index, one in enumerate(cast(Detector, self.model).detect(self.images(canvases), sizes)):
            boxes, classes, scores = (one[name].cpu().numpy() for name in ("boxes", "labels", "scores"))
            boxes_N4 = boxes_in_image(boxes, geometry_VB5[:, index], size)
            some = (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(1)  # one in the margin is cut to nothing
            results.append((boxes_N4[some], classes[some], scores[some].astype(np.float32)))
        return results

    def evaluate(self, shards: Shards, context: RankContext, *, decode_threads: int = 1) -> Evaluation:
        """COCO's numbers, and those of each class."""
        images, left_out = self.evaluated(shards, context, decode_threads=decode_threads)
        metrics, rows, error = evaluated_scores(images, self.class_names)
        details: dict[str, Any] = {
            "validation_images": len(images),
            "validation_boxes": sum(len(image.true_N4) for image in images),
            "class_names": self.class_names,
            "per_class": rows,
            "standard_errors": {"map": error},
        }
        if left_out.counts:
            details["validation_boxes_left_out"] = left_out.as_json()
        return Evaluation(metrics, details)

    def evaluated(
        self, shards: Shards, context: RankContext, *, decode_threads: int = 1
    ) -> tuple[list[EvaluatedImage], LeftOut]:
        """All images of a data set with true and found boxes, by row, on every rank,
        whatever their number.
        """
        name = self.columns["objects"]
        classes = ClassNames(tuple(self.config["class_values"]), self.class_names)
        reader = TargetReader(boxes_column_of(shards.manifest, name, self.config["box_format"]), classes)
        images: list[EvaluatedImage] = []
        left_out = LeftOut()
        for batch in self.batches(shards, context, batch_size=BATCH, decode_threads=decode_threads):
            assert batch.geometry_VB5 is not None
            found = self.found(batch.arrays[0], batch.geometry_VB5)
            for index, row_id in enumerate(batch.row_ids.tolist()):
                width, height = (int(side) for side in batch.geometry_VB5[1, index, 2:4])
                value = batch.columns[name][index]
                target, bad = reader.read(
                    value, width=width, height=height, location=str(shards.location(row_id))
                )
                left_out.merge(bad)
                true = target.xyxy_N4, target.classes_N
                images.append(EvaluatedImage(row_id, width, height, *true, *found[index]))
        parts = gathered_objects((images, left_out))
        all_left_out = LeftOut()
        for _, of_rank in parts:
            all_left_out.merge(of_rank)
        everything = sorted(
            (image for of_rank, _ in parts for image in of_rank), key=lambda image: image.row_id
        )
        if not any(len(image.true_N4) for image in everything):
            raise UserError(
                "no image of the validation data that can be decoded has a box that can be used (column "
                f"{name!r}); `python -m pretrain.data check` says why"
            )
        return everything, all_left_out
