"""Towers for frames: transformers that take pictures, each frame of a video one of them."""
