"""Writes the messages of the command line to the terminal: lines for people, or JSON."""

import logging
import sys

from serve.ray_logs import json_formatter
from serve.settings import LogFormat

LOGGER = "serve.launch"


def use_console(log_format: LogFormat) -> None:
    """Sends messages of `LOGGER` to stdout, and errors to stderr."""
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    output, errors = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    output.addFilter(lambda record: record.levelno < logging.ERROR)
    errors.setLevel(logging.ERROR)
    if log_format == "json":
        output.setFormatter(json_formatter())
        errors.setFormatter(json_formatter())
    else:
        errors.setFormatter(logging.Formatter("serve: %(message)s"))
    logger.handlers = [output, errors]
