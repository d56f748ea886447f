"""Writes this package's log messages to the log file of the Ray Serve replica that the process runs."""

import logging


def use_replica_log() -> None:
    """Call once in a replica's constructor. Ray Serve sets up only its own logger, so INFO messages would be lost."""
    logger = logging.getLogger("serve")
    logger.setLevel(logging.INFO)
    logger.handlers = logging.getLogger("ray.serve").handlers
