"""Encoders and classifiers for other programs: ONNX, timm, Hugging Face;
safetensors, JSON and source text, no pickles.
"""
