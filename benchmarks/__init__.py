"""Benchmarks. Each script prints its progress and, as its last line, one JSON object with the result."""
