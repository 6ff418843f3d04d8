"""What a model predicts for images, data sets and videos:
`python -m finetune predict MODEL INPUT ... OUT`.
"""
