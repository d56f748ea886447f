"""Measures the prediction endpoints with a full database and without an engine: `scripts/bench api`."""
