"""Detections linked over a video's frames by ByteTrack (https://arxiv.org/abs/2110.06864), of `trackers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.errors import UserError


@dataclass(frozen=True)
class Tracked:
    """A box of a track: `track` counts from 1, `box` is left, top, right and bottom in pixels."""

    track: int
    label: str
    score: float
    box: tuple[float, float, float, float]


class Tracker:
    """Links the boxes of one video, frame after frame.

    Args:
        labels: names of all classes.
        frame_rate: frames a second.
        min_score: of a box that may begin a track; less sure boxes only carry on one that is there.
        min_iou: overlap of a box with where a track is expected.
        patience_seconds: a track that is not seen for longer ends.
    """

    def __init__(
        self,
        labels: Sequence[str],
        *,
        frame_rate: float,
        min_score: float = 0.5,
        min_iou: float = 0.1,
        patience_seconds: float = 1.0,
    ) -> None:
        try:
            import supervision
            import trackers
        except ImportError as error:  # OpenCV in it may miss libGL on a bare server
            raise UserError(
                "tracking needs the package trackers: pip install 'fovea[video]' (and "
                f"opencv-python-headless where there is no libGL); here: {error}"
            ) from error
        self._labels = list(labels)
        self._detections: Any = supervision.Detections
        self._tracker: Any = trackers.ByteTrackTracker(
            frame_rate=frame_rate,
            # the library counts its patience in frames of a video of 30 a second, and scales it
            lost_track_buffer=max(1, round(30 * patience_seconds)),
            track_activation_threshold=min_score,
            high_conf_det_threshold=min_score,
            minimum_iou_threshold=min_iou,
            minimum_consecutive_frames=1,
        )

    def follow(
        self, boxes: Sequence[Sequence[float]], labels: Sequence[str], scores: Sequence[float]
    ) -> list[Tracked]:
        """The boxes of the next frame that belong to a track."""
        number = {label: index for index, label in enumerate(self._labels)}
        given = self._detections(
            xyxy=np.asarray(boxes, np.float32).reshape(-1, 4),
            confidence=np.asarray(scores, np.float32),
            class_id=np.asarray([number[label] for label in labels], np.int64),
        )
        found = self._tracker.update(given)
        if found.tracker_id is None:
            return []
        rows = zip(found.tracker_id, found.class_id, found.confidence, found.xyxy, strict=True)
        return [
            Tracked(
                int(track) + 1,
                self._labels[int(kind)],
                float(score),
                (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
            )
            for track, kind, score, box in rows
            if track >= 0
        ]


def mot_lines(frame: int, tracked: Sequence[Tracked]) -> str:
    """Lines of a MOT Challenge file: frame (from 1), track, left, top, width, height, score, -1, -1, -1."""
    return "".join(
        f"{frame + 1},{t.track},{t.box[0]:.2f},{t.box[1]:.2f},"
        f"{t.box[2] - t.box[0]:.2f},{t.box[3] - t.box[1]:.2f},"
        f"{t.score:.4f},-1,-1,-1\n"
        for t in tracked
    )
