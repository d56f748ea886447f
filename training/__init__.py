"""Trains the embedded models on synthetic drawings. The service does not import this package."""
