"""The tasks that a model can be made for. `finetune.tasks.base` says what a task is."""

from finetune.tasks.base import Task
from finetune.tasks.classification.task import Classification
from finetune.tasks.detection.task import Detection
from finetune.tasks.summarization.task import Summarization

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "detection": Detection,
    "summarization": Summarization,
}
