"""Guarded HTTP client for URLs from callers."""
