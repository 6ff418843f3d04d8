"""Classification: one class an image."""

from finetune.tasks.classification.predictor import Classification, ImageClassifier

__all__ = ["Classification", "ImageClassifier"]
