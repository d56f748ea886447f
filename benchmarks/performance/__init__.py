"""Writes docs/performance.md from the committed results of `benchmarks/results`."""
