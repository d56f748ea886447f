"""Tiny FLUX checkpoints with random weights, for tests and benchmarks. The service imports none of it."""
