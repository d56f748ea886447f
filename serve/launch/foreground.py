"""Runs the service in the foreground, on a Ray instance of its own, until Ctrl-C or SIGTERM."""

import contextlib
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping

import psutil
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.logging_utils import get_serve_logs_dir
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, DeploymentStatus, DeploymentStatusOverview, ServeDeploySchema

from serve.launch.ready_report import http_url, read_pool_states, report_lines
from serve.ray_logs import logging_config
from serve.settings import Settings, use_proxy_middleware, use_slow_control_loop, uses_ray_token

OBJECT_STORE_BYTES = 256 * 2**20
RAY_HOST = "127.0.0.2"
"""A loopback address, so that Ray survives a change of network. Ray would replace 127.0.0.1 by an external address."""
POLL_S = 0.5
WATCH_PERIOD_S = 3.0
CLOSE_TIMEOUT_S = 70.0
"""For all replicas of the ingress, which wait for running predictions for up to `SHUTDOWN_GRACE_S`."""
RAY_STOP_TIMEOUT_S = 20.0

log = logging.getLogger(__name__)


class StartupError(Exception):
    """The service cannot start. The message is a single line for the operator."""


class ServiceLost(Exception):
    """Ray has stopped while the service ran. The message is a single line for the operator."""


def run(
    schema: ServeDeploySchema,
    settings: Settings,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    metrics_port: int | None = None,
) -> None:
    """Deploys the application and blocks until Ctrl-C or SIGTERM, then shuts it down.

    `num_cpus` and `num_gpus` are the resources that Ray may schedule; None means all that the machine has. Prometheus
    reads the metrics at `metrics_port`; None means a free port. Raises `StartupError` and `ServiceLost`.
    """
    stop = threading.Event()
    _install_signal_handlers(stop)
    application, http = schema.applications[0].name, schema.http_options
    log.info("starting Ray")
    with _local_ray(num_cpus, num_gpus, metrics_port) as address:
        # ray.init() has installed its own handlers, which abort.
        _install_signal_handlers(stop)
        _deploy(schema, settings)
        is_running = _wait_until_running(application, stop)
        if is_running:
            url, states = http_url(http.host, http.port), read_pool_states(application, settings)
            for line in report_lines(settings, states, url, _metrics_url(), get_serve_logs_dir()):
                log.info("%s", line)
            # A client with an explicit address sends the token only if this variable is set.
            token = ", RAY_AUTH_MODE=token" if uses_ray_token() else ""
            log.info("ready: %s (Ray at %s%s; Ctrl-C to stop)", url, address, token)
            _wait_until_stopped(application, stop)
        log.info("stopping; press Ctrl-C again to stop without waiting for running predictions")
        if is_running:
            _close(application)
        _delete(application)


def _wait_until_stopped(application: str, stop: threading.Event) -> None:
    """Also returns if the application was deleted. Raises `ServiceLost` if Ray ends before."""
    while not stop.wait(WATCH_PERIOD_S):
        if not any(node["Alive"] for node in ray.nodes()):
            raise ServiceLost("Ray has stopped, and the service with it; start it again")
        with contextlib.suppress(RayError):  # The controller starts again after a loss.
            # `serve.status` takes 25 ms of CPU here, as it builds the whole configuration.
            status = _get_global_client().get_serve_status(application).app_status.status
            if status == ApplicationStatus.NOT_STARTED:
                return


def _close(application: str) -> None:
    """Every ingress rejects new predictions, and answers polls until the running ones have ended.

    Deleting the application first would end its routes first. If it was deleted already, nothing happens.
    """
    try:
        closing = serve.get_app_handle(application).broadcast("_close")
        closing.results(timeout_s=CLOSE_TIMEOUT_S, return_exceptions=True)
    except RayServeException:
        return
    except TimeoutError:
        log.info("predictions that still run go on at the next start")


def _delete(application: str) -> None:
    try:
        serve.delete(application)
    except TimeoutError:
        log.info("a replica did not end in time; it is stopped with Ray")


def _install_signal_handlers(stop: threading.Event) -> None:
    """The first Ctrl-C or SIGTERM sets `stop`; the second one raises KeyboardInterrupt."""
    signals = (signal.SIGINT, signal.SIGTERM)

    def request_stop(*_: object) -> None:
        stop.set()
        for number in signals:
            signal.signal(number, signal.default_int_handler)

    for number in signals:
        signal.signal(number, request_stop)


@contextlib.contextmanager
def _local_ray(num_cpus: int | None, num_gpus: int | None, metrics_port: int | None) -> Iterator[str]:
    """Starts Ray, yields its address, and shuts it down."""
    use_slow_control_loop()
    use_proxy_middleware()
    # In the system's temporary folder, because the paths of Ray's sockets have a length limit.
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
            _metrics_export_port=metrics_port,
        )
        try:
            yield context.address_info["gcs_address"]
        finally:
            _stop_ray()


def _stop_ray() -> None:
    """Without its raylet, Ray may never return from its shutdown; then its processes are killed."""
    stopping = threading.Thread(target=ray.shutdown, daemon=True)
    stopping.start()
    stopping.join(RAY_STOP_TIMEOUT_S)
    if stopping.is_alive():
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _metrics_url() -> str:
    """Where Prometheus reads the metrics of the only node."""
    (node,) = ray.nodes()
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def _deploy(schema: ServeDeploySchema, settings: Settings) -> None:
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        http_options=schema.http_options.model_dump(),
        proxy_location=schema.proxy_location,
        logging_config=schema.logging_config or logging_config(settings.log_format),
    )
    _get_global_client().deploy_apps(schema)


def _wait_until_running(name: str, stop: threading.Event) -> bool:
    """Waits until every ingress accepts predictions and prints status changes. False if `stop` was set first."""
    printed: dict[str, str] = {}
    while not stop.is_set():
        application = serve.status().applications.get(name)
        if application is not None:
            _print_changes(application.deployments, printed)
            if application.status == ApplicationStatus.RUNNING:
                serve.get_app_handle(name).broadcast("wait_until_open").results()
                return True
            if application.status == ApplicationStatus.DEPLOY_FAILED:
                raise StartupError(_failure_reason(application.message, application.deployments))
        time.sleep(POLL_S)
    return False


def _print_changes(deployments: Mapping[str, DeploymentStatusOverview], printed: dict[str, str]) -> None:
    for name, deployment in deployments.items():
        if printed.get(name) != deployment.status:
            printed[name] = deployment.status
            log.info("%s: %s", name, deployment.status.value.lower().replace("_", " "))


def _failure_reason(message: str, deployments: Mapping[str, DeploymentStatusOverview]) -> str:
    """The last line of the first failed deployment's message, which is the exception at the end of a traceback."""
    failed = (each.message for each in deployments.values() if each.status == DeploymentStatus.DEPLOY_FAILED)
    lines = [line for line in next(failed, message).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "Ray Serve gave no reason"
