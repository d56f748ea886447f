"""Predictions: requests, records, their storage, and the service that runs them. No Ray, torch or HTTP."""
