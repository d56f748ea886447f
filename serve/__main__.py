"""`python -m serve [config.yaml]`: runs the service on this machine, in the foreground, until Ctrl-C or SIGTERM.

It starts its own Ray instance; to deploy to an existing cluster, use `serve deploy`. `python -m serve tokens` manages
the tokens of callers, and `python -m serve webhooks` has the operator's commands for webhooks.
"""

import argparse
import asyncio
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.serve.schema import ServeDeploySchema

from serve.api.auth import check_bind_address
from serve.errors import DatabaseUnavailable
from serve.launch import foreground, webhook_commands
from serve.launch.config_file import (
    ConfigError,
    apply_settings,
    embedded_config,
    parse_assignments,
    read_config,
    validate_config,
)
from serve.launch.console import LOGGER, use_console
from serve.launch.service_lock import AlreadyRunning, service_lock
from serve.launch.tokens_command import TOKENS, manage_tokens
from serve.settings import Settings, database_url, read_secrets, state_folder

log = logging.getLogger(LOGGER)


class BindError(Exception):
    """The service cannot or may not listen on its address."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the service or a command and returns the exit status. Errors are printed to stderr."""
    use_console("text")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["webhooks"]:
        return _run_webhook_command(given[1:])
    if given[:1] == [TOKENS]:
        return manage_tokens(given[1:])
    options = _parse(given)
    try:
        schema, settings = validate_config(_config(options))
        _check_address(schema, settings)
        port = schema.http_options.port
        with service_lock(state_folder(settings, port)):
            use_console(settings.log_format)
            foreground.run(schema, settings, options.num_cpus, options.num_gpus, options.metrics_port)
    except (ConfigError, BindError) as error:
        return _fail(str(error))
    except AlreadyRunning:
        return _fail(f"another service of this user has port {port} or its state folder; try another --port")
    except foreground.ServiceLost as error:
        return _fail(str(error))
    except foreground.StartupError as error:
        return _fail(f"start-up failed: {error}")
    except KeyboardInterrupt:
        return 130
    return 0


def _run_webhook_command(arguments: Sequence[str]) -> int:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, help="the service's config file; default: the embedded models")
    _add_overrides(common)
    options = webhook_commands.parse(arguments, common)
    try:
        schema, settings = validate_config(_config(options))
        url = database_url(settings, schema.http_options.port)
        lines = asyncio.run(webhook_commands.run(options, url))
    except ConfigError as error:
        return _fail(str(error))
    except DatabaseUnavailable as error:
        return _fail(f"the database cannot be reached: {error.cause}")
    for line in lines:
        print(line)
    return 0


def _fail(message: str) -> int:
    log.error("%s", message)
    return 1


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="serve", description="Run the service on this machine, in the foreground.")
    parser.add_argument("config", nargs="?", type=Path, help="Ray Serve config file; default: the embedded models")
    _add_overrides(parser)
    parser.add_argument("--num-cpus", type=int, metavar="N", help="CPUs for Ray to schedule; default: all")
    parser.add_argument("--num-gpus", type=int, metavar="N", help="GPUs for Ray to schedule; default: all")
    parser.add_argument("--metrics-port", type=int, metavar="PORT", help="port of the metrics; default: a free one")
    return parser.parse_args(arguments)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    """The options that change the config file."""
    parser.add_argument("--host", help="address to listen on; default without a config file: 127.0.0.1")
    parser.add_argument("--port", type=int, help="port to listen on; default without a config file: 8000")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, given by its dotted name and its value in YAML; repeatable",
    )


def _config(options: argparse.Namespace) -> dict[str, Any]:
    config = read_config(options.config) if options.config else embedded_config()
    http = dict(config.get("http_options") or {})
    http |= {key: value for key, value in (("host", options.host), ("port", options.port)) if value is not None}
    assignments = parse_assignments(options.set)
    if not options.config:
        assignments.setdefault("outputs.public_url", f"http://{http['host']}:{http['port']}")
    return apply_settings({**config, "http_options": http}, assignments)


def _check_address(schema: ServeDeploySchema, settings: Settings) -> None:
    """Checks authentication and that the port is free. Ray Serve reports both only in a worker's log."""
    host, port = schema.http_options.host, schema.http_options.port
    try:
        requires_token = settings.require_token or read_secrets().api_token is not None
        check_bind_address(host, requires_token, settings.allow_unauthenticated)
    except ValueError as error:
        raise BindError(str(error)) from None
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise BindError(f"cannot listen on {host}:{port}: {error.strerror}; try another --port") from None


if __name__ == "__main__":
    sys.exit(main())
