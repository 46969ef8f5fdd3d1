"""Spatial-temporal token merging for video transformers."""
