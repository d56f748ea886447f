"""Test checkpoints: tiny FLUX models with random weights. The service does not import this package."""
