"""What a model says of pictures, data sets and videos: `python -m finetune predict MODEL INPUT ... OUT`."""
