"""What a model says of pictures, data sets and films: `python -m finetune predict MODEL INPUT ... OUT`."""
