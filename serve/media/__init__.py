"""Decodes, resizes, encodes and stores images.

It imports neither Ray nor torch, and no HTTP, prediction or engine code; pixels are numpy arrays.
"""
