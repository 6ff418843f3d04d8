"""A function behind Ray Serve: replicas that each hold it, and batches that Serve forms of what is asked."""
