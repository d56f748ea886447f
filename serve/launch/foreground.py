"""Runs the service in the foreground, on a local Ray of its own, until Ctrl-C or SIGTERM."""

import contextlib
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, DeploymentStatus, DeploymentStatusOverview, ServeDeploySchema

OBJECT_STORE_BYTES = 256 * 2**20
RAY_HOST = "127.0.0.2"
"""Loopback, so that a laptop may change its network. Ray would replace 127.0.0.1 by an outside address."""
POLL_S = 0.5


class StartupError(Exception):
    """The message is for whoever started the service."""


def run(schema: ServeDeploySchema, num_cpus: int | None, num_gpus: int | None) -> None:
    """Returns after Ctrl-C or SIGTERM, when what ran has ended. Raises `StartFailed`.

    `num_cpus` and `num_gpus` are what Ray hands out; None is what the machine has.
    """
    stop = threading.Event()
    _stop_on_signals(stop)
    application, http = schema.applications[0].name, schema.http_options
    print("starting Ray", flush=True)
    with _own_ray(num_cpus, num_gpus) as address:
        # Ray puts a handler of its own, which aborts, in the place of ours.
        _stop_on_signals(stop)
        _deploy(schema)
        if _wait_until_running(application, stop):
            print(f"ready: http://{http.host}:{http.port} (Ray at {address}; Ctrl-C stops)", flush=True)
        stop.wait()
        print("stopping (Ctrl-C again does not wait for what still runs)", flush=True)
        serve.delete(application)


def _stop_on_signals(stop: threading.Event) -> None:
    """The first Ctrl-C or SIGTERM sets `stop`; a second one interrupts whatever waits."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def ask(*_: object) -> None:
        stop.set()
        for number in numbers:
            signal.signal(number, signal.default_int_handler)

    for number in numbers:
        signal.signal(number, ask)


@contextlib.contextmanager
def _own_ray(num_cpus: int | None, num_gpus: int | None) -> Iterator[str]:
    """A Ray of our own for as long as the block lasts: its address."""
    # Below the system's own temporary folder: the names of Ray's sockets may not be long.
    with tempfile.TemporaryDirectory(prefix="flux-", ignore_cleanup_errors=True) as folder:
        context = ray.init(
            address="local",
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=folder,
            _node_ip_address=RAY_HOST,
        )
        try:
            yield context.address_info["gcs_address"]
        finally:
            ray.shutdown()


def _deploy(schema: ServeDeploySchema) -> None:
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(http_options=schema.http_options.model_dump(), proxy_location=schema.proxy_location)
    _get_global_client().deploy_apps(schema)


def _wait_until_running(name: str, stop: threading.Event) -> bool:
    """Tells of each deployment on the way. False when it was asked to stop before."""
    told: dict[str, str] = {}
    while not stop.is_set():
        application = serve.status().applications.get(name)
        if application is not None:
            _tell_changes(application.deployments, told)
            if application.status == ApplicationStatus.RUNNING:
                serve.get_app_handle(name).wait_until_open.remote().result()
                return True
            if application.status == ApplicationStatus.DEPLOY_FAILED:
                raise StartupError(_reason(application.message, application.deployments))
        time.sleep(POLL_S)
    return False


def _tell_changes(deployments: Mapping[str, DeploymentStatusOverview], told: dict[str, str]) -> None:
    for name, deployment in deployments.items():
        if told.get(name) != deployment.status:
            told[name] = deployment.status
            print(f"{name}: {deployment.status.value.lower().replace('_', ' ')}", flush=True)


def _reason(message: str, deployments: Mapping[str, DeploymentStatusOverview]) -> str:
    """One line: what the first failed deployment raised. Above it in Serve's message stands a traceback."""
    failed = (row.message for row in deployments.values() if row.status == DeploymentStatus.DEPLOY_FAILED)
    lines = [line for line in next(failed, message).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "Serve gave no reason"
