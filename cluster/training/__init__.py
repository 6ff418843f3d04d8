"""Workers of a training run: here, on a private Ray, or on a cluster."""
