"""What a model predicts for images, data sets, videos: `python -m finetune predict MODEL INPUT ... OUT`."""
