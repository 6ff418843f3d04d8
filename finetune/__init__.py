"""Turn an encoder into a task model."""
