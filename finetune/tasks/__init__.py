"""What a model can be for: one file a task."""
