"""Summarization: keywords, each with the positions it refers to, and a sentence."""

from finetune.tasks.summarization.predictor import ImageSummarizer, Keyword, Summary

__all__ = ["ImageSummarizer", "Keyword", "Summary"]
