"""The reports of the tasks."""

from __future__ import annotations

from finetune.reporting.base import TaskReport
from finetune.reporting.classification import ClassificationReport
from finetune.reporting.detection import DetectionReport

TASK_REPORTS: dict[str, TaskReport] = {
    "classification": ClassificationReport(),
    "detection": DetectionReport(),
}
