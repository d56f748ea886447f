"""Webhooks: sends the events of predictions to the URLs of their callers. No Ray and no HTTP server."""
