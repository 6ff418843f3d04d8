"""A model behind HTTP: `python -m finetune serve MODEL`."""
