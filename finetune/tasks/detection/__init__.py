"""Detection: boxes and their classes."""

from finetune.tasks.detection.predictor import Detections, ObjectDetector

__all__ = ["Detections", "ObjectDetector"]
