"""Pipelines: stages that depend on each other, each a job of its own;
state in storage, so that any crash is survived.
"""
