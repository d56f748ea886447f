"""Pictures on their way in and out: guarded fetch, decode, fit, encode, and the store of finished files.

Knows nothing of Ray, torch, HTTP routes, predictions or the engine; pixels leave and enter as numpy arrays.
"""
