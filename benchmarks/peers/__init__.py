"""Compares the service with other ways to serve the same checkpoint over HTTP: `scripts/bench peers`."""
