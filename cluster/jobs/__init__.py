"""Jobs and pipelines on a cluster."""
