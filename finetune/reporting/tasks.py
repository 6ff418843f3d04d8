"""The reports of the tasks."""

from __future__ import annotations

from finetune.reporting.base import TaskReport
from finetune.reporting.classification import ClassificationReport
from finetune.reporting.detection import DetectionReport
from finetune.reporting.summarization import SummarizationReport

TASK_REPORTS: dict[str, TaskReport] = {
    "classification": ClassificationReport(),
    "detection": DetectionReport(),
    "summarization": SummarizationReport(),
}
