"""Trains the bundled checkpoints on synthetic drawings. The service imports none of it."""
