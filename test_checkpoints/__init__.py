"""Test checkpoints: tiny FLUX models with random weights, for tests and benchmarks. The service imports none of it."""
