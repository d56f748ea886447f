"""Sends the messages of this package to Ray Serve's log of the process, as text or as JSON."""

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import ray
from ray._common.formatters import JSONFormatter
from ray.serve._private.logging_utils import configure_component_logger
from ray.serve.schema import LoggingConfig

from serve.logs import ContextFilter
from serve.settings import LogFormat

PACKAGE = "serve"
STANDARD_FIELDS = ("name", "created")
"""Fields of `logging.LogRecord` that Ray's JSON does not have by default."""


def logging_config(log_format: LogFormat) -> LoggingConfig | None:
    """For Ray Serve's own components, and for deployments. None means what the config file has, or else text."""
    if log_format == "text":
        return None
    return LoggingConfig(encoding="JSON", additional_log_standard_attrs=list(STANDARD_FIELDS))


def json_formatter() -> logging.Formatter:
    """The formatter of Ray Serve's JSON logs, for processes that are not its components."""
    formatter = JSONFormatter()
    formatter.set_additional_log_standard_attrs(list(STANDARD_FIELDS))
    return cast(logging.Formatter, formatter)


def use_serve_log(log_format: LogFormat, fields: Mapping[str, str] = MappingProxyType({})) -> None:
    """Call once in a replica's constructor. Ray Serve sets up only its own logger, so INFO messages would be lost.

    JSON messages get `fields`, and those of the prediction that they belong to.
    """
    logger = logging.getLogger(PACKAGE)
    logger.setLevel(logging.INFO)
    logger.handlers = logging.getLogger("ray.serve").handlers
    if log_format == "json":
        for handler in logger.handlers:
            # After the filters of Ray Serve, which add the id of the call instead of that of the HTTP request.
            handler.addFilter(ContextFilter(fields))


def use_actor_log(name: str, log_format: LogFormat) -> None:
    """Gives an actor, which is not a component of Ray Serve, a log beside those of the replicas."""
    if not ray.is_initialized():  # As in tests.
        return
    actor_id = ray.get_runtime_context().get_actor_id()
    config = logging_config(log_format) or LoggingConfig()
    configure_component_logger(component_name=name, component_id=actor_id, logging_config=config)
    use_serve_log(log_format)
