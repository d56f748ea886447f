"""Drawings made by code: scenes, their strokes, their pixels and their prompts. Knows no torch."""
