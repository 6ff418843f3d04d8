"""Workers of a training run: here, on a Ray of its own, or on a cluster."""
