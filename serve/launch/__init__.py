"""Starts the service: reads the config file, runs in the foreground, or runs as a subprocess."""
