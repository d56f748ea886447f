"""`python -m serve [config.yaml]`: the service on this machine, in the foreground, until Ctrl-C or SIGTERM.

Starts a Ray of its own, with nothing but the service in it; on a cluster that runs already use `serve deploy`.
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


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        schema, settings = validate_config(_configuration(options))
        _check_door(schema, settings)
        foreground.run(schema, options.num_cpus, options.num_gpus)
    except (ConfigError, BindError) as fault:
        return _say(str(fault))
    except foreground.StartupError as failure:
        return _say(f"start-up failed: {failure}")
    except KeyboardInterrupt:
        return 130
    return 0


class BindError(Exception):
    """The service cannot listen where it was told to."""


def _say(fault: str) -> int:
    print(f"serve: {fault}", file=sys.stderr)
    return 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="serve", description="Serve FLUX on this machine, in the foreground.")
    parser.add_argument("config", nargs="?", type=Path, help="a Serve config file; embedded models without one")
    parser.add_argument("--host", help="address to listen on (127.0.0.1 without a config)")
    parser.add_argument("--port", type=int, help="port to listen on (8000 without a config)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting by its dotted name, as YAML"
    )
    parser.add_argument("--num-cpus", type=int, help="CPUs that Ray hands out (as many as there are)")
    parser.add_argument("--num-gpus", type=int, help="GPUs that Ray hands out (as many as there are)")
    return parser.parse_args(arguments)


def _configuration(options: argparse.Namespace) -> dict[str, Any]:
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


def _check_door(schema: ServeDeploySchema, settings: Settings) -> None:
    """What Serve would only tell in a worker's log: an open door, and a port that is taken."""
    host, port = schema.http_options.host, schema.http_options.port
    try:
        check_bind_address(host, read_secrets().api_token is not None, settings.allow_unauthenticated)
    except ValueError as fault:
        raise BindError(str(fault)) from None
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise BindError(f"cannot listen on {host}:{port}: {error.strerror}; try another --port") from None


if __name__ == "__main__":
    sys.exit(main())
