"""Parquet shards to batches: packing, manifest, order, reading, decoding, views."""
