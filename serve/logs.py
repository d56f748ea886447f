"""Log messages of replicas: their file, and the id of the HTTP request that a message belongs to."""

import logging
from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the HTTP request that runs; empty in a task that outlives its request."""


def use_replica_log() -> None:
    """Call once in a replica's constructor. Ray Serve sets up only its own logger, so INFO messages would be lost."""
    logger = logging.getLogger("serve")
    logger.setLevel(logging.INFO)
    logger.handlers = logging.getLogger("ray.serve").handlers
