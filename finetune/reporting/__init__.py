"""report.html of a fine-tuning run: the parts that all tasks share, and what each task adds.

A task adds a `TaskReport` in a module of its own and its line in `finetune.reporting.tasks.TASK_REPORTS`.
"""
