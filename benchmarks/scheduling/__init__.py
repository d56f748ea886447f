"""Compares orders of work within a replica: `scripts/bench scheduling`."""
