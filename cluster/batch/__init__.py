"""Batch jobs over a data set, in this process or on Ray."""
