"""Sources of images to Parquet shards: import, ledger, and other row groups."""
