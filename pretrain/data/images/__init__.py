"""Encoded images to pixels, boxes in their pixels, and small drawings."""
