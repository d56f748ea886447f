"""Synthetic drawings: scenes, strokes, pixels and prompts. Does not import torch."""
