"""`python -m serve [config.yaml]`: runs the service on this machine, in the foreground, until Ctrl-C or SIGTERM.

It starts its own Ray instance; to deploy to an existing cluster, use `serve deploy`.
"""

import argparse
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.serve.schema import ServeDeploySchema

from serve.api.auth import check_bind_address
from serve.launch import foreground
from serve.launch.config_file import ConfigError, apply_settings, embedded_config, read_config, validate_config
from serve.settings import Settings, read_secrets


class BindError(Exception):
    """The service cannot or may not listen on its address."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the service and returns its exit status. Errors are printed to stderr."""
    options = _parse(arguments)
    try:
        schema, settings = validate_config(_config(options))
        _check_address(schema, settings)
        foreground.run(schema, options.num_cpus, options.num_gpus, options.metrics_port)
    except (ConfigError, BindError) as error:
        return _fail(str(error))
    except foreground.StartupError as error:
        return _fail(f"start-up failed: {error}")
    except KeyboardInterrupt:
        return 130
    return 0


def _fail(message: str) -> int:
    print(f"serve: {message}", file=sys.stderr)
    return 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="serve", description="Run the service on this machine, in the foreground.")
    parser.add_argument("config", nargs="?", type=Path, help="Ray Serve config file; default: the embedded models")
    parser.add_argument("--host", help="address to listen on; default without a config file: 127.0.0.1")
    parser.add_argument("--port", type=int, help="port to listen on; default without a config file: 8000")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, given by its dotted name and its value in YAML; repeatable",
    )
    parser.add_argument("--num-cpus", type=int, metavar="N", help="CPUs for Ray to schedule; default: all")
    parser.add_argument("--num-gpus", type=int, metavar="N", help="GPUs for Ray to schedule; default: all")
    parser.add_argument("--metrics-port", type=int, metavar="PORT", help="port of the metrics; default: a free one")
    return parser.parse_args(arguments)


def _config(options: argparse.Namespace) -> dict[str, Any]:
    config = read_config(options.config) if options.config else embedded_config()
    http = dict(config.get("http_options") or {})
    http |= {key: value for key, value in (("host", options.host), ("port", options.port)) if value is not None}
    assignments = dict(_assignment(text) for text in options.set)
    if not options.config:
        assignments.setdefault("outputs.public_url", f"http://{http['host']}:{http['port']}")
    return apply_settings({**config, "http_options": http}, assignments)


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ConfigError(f"--set {text}: should be KEY=VALUE")
    return key, value


def _check_address(schema: ServeDeploySchema, settings: Settings) -> None:
    """Checks authentication and that the port is free. Ray Serve reports both only in a worker's log."""
    host, port = schema.http_options.host, schema.http_options.port
    try:
        check_bind_address(host, read_secrets().api_token is not None, settings.allow_unauthenticated)
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
