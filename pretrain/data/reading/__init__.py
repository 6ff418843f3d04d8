"""Parquet shards to batches: manifest, order, rows, stored features, loader."""
