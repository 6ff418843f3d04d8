"""What a model says of images, data sets and videos: `python -m finetune predict MODEL INPUT ... OUT`."""
