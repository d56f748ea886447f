"""`python -m serve [config.yaml]`: the service on this machine, in the foreground, until Ctrl-C or SIGTERM.

Starts a Ray of its own, with nothing but the service in it; on a cluster that runs already use `serve deploy`.
"""

import argparse
import contextlib
import logging
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from serve.api.door import refuse_open_door
from serve.config_file import ConfigFault, check, embedded_config, read_config, with_settings
from serve.settings import Settings, read_secrets

OBJECT_STORE_BYTES = 256 * 2**20
RAY_ADDRESS = "127.0.0.2"
"""Loopback: Ray's ports are for this machine only. It would replace 127.0.0.1 by an address that others reach."""
POLL_S = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        schema, settings = check(_configuration(options))
        _check_door(schema, settings)
        return _serve_until_stopped(schema, options)
    except (ConfigFault, ServiceUnusable) as fault:
        print(f"serve: {fault}", file=sys.stderr)
        return 1


class ServiceUnusable(Exception):
    """The service cannot start here; the message is for whoever started it."""


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
    return with_settings({**config, "http_options": http}, assignments)


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ConfigFault(f"--set {text}: should be KEY=VALUE")
    return key, value


def _check_door(schema: ServeDeploySchema, settings: Settings) -> None:
    """What Serve would only tell in a worker's log: an open door, and a port that is taken."""
    host, port = schema.http_options.host, schema.http_options.port
    try:
        refuse_open_door(host, read_secrets().api_token is not None, settings.open_without_token)
    except ValueError as fault:
        raise ServiceUnusable(str(fault)) from None
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ServiceUnusable(f"cannot listen on {host}:{port}: {error.strerror}; try another --port") from None


def _serve_until_stopped(schema: ServeDeploySchema, options: argparse.Namespace) -> int:
    stop = _stop_on_signals()
    with _own_ray(options) as address:
        _deploy(schema, stop)
        if not stop.is_set():
            http = schema.http_options
            print(f"ready: http://{http.host}:{http.port} (Ray at {address}; Ctrl-C stops)", flush=True)
        stop.wait()
        print("stopping", flush=True)
    return 0


def _stop_on_signals() -> threading.Event:
    """Set by the first Ctrl-C or SIGTERM: what runs may end. A second one does not wait for it."""
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def ask(*_: object) -> None:
        stop.set()
        for number in numbers:
            signal.signal(number, signal.default_int_handler)

    for number in numbers:
        signal.signal(number, ask)
    return stop


@contextlib.contextmanager
def _own_ray(options: argparse.Namespace) -> Iterator[str]:
    """A Ray of our own for as long as the block lasts: its address. Its sockets need a short path."""
    print("starting Ray", flush=True)
    with tempfile.TemporaryDirectory(prefix="flux-", ignore_cleanup_errors=True) as folder:
        context = ray.init(
            address="local",
            num_cpus=options.num_cpus,
            num_gpus=options.num_gpus,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=folder,
            _node_ip_address=RAY_ADDRESS,
        )
        try:
            yield context.address_info["gcs_address"]
        finally:
            serve.shutdown()
            ray.shutdown()


def _deploy(schema: ServeDeploySchema, stop: threading.Event) -> None:
    """Deploys and returns once the application runs, telling of each pool on the way."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(http_options=schema.http_options.model_dump(), proxy_location=schema.proxy_location)
    _get_global_client().deploy_apps(schema)
    told: dict[str, str] = {}
    while not stop.is_set():
        application = serve.status().applications.get(schema.applications[0].name)
        if application is not None:
            for name, deployment in application.deployments.items():
                if told.get(name) != deployment.status:
                    told[name] = deployment.status
                    print(f"{name}: {deployment.status.value.lower()}", flush=True)
            if application.status == ApplicationStatus.RUNNING:
                return
            if application.status == ApplicationStatus.DEPLOY_FAILED:
                raise ServiceUnusable(f"start-up failed: {_reason(application.message)}")
        time.sleep(POLL_S)


def _reason(message: str) -> str:
    """The last line of what Serve tells of a failed start: above it stands a traceback."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given"


if __name__ == "__main__":
    sys.exit(main())
