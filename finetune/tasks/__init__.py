"""The tasks that a model can be made for. `finetune.tasks.base` says what a task is."""

from cluster.registry import Registry
from finetune.tasks.base import Task

TASKS: Registry[type[Task]] = Registry(
    {
        "classification": "finetune.tasks.classification.task:Classification",
        "detection": "finetune.tasks.detection.task:Detection",
        "summarization": "finetune.tasks.summarization.task:Summarization",
    }
)
