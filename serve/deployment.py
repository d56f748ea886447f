"""Builds the Ray Serve application from the settings.

    serve run serve.deployment:build            the embedded models
    serve deploy serve_config.yaml              production; `args` has the settings

Ray Serve reads the annotations of `build` at run time, so this module must not import `annotations` from `__future__`.
"""

from typing import Any

from ray import serve
from ray.serve import Application, Deployment

from serve.ingress import SHUTDOWN_GRACE_S, Ingress
from serve.model_replica import ModelReplica
from serve.ray_logs import logging_config
from serve.settings import PoolSettings, Settings

INGRESS = "ingress"

EXTRA_ONGOING_REQUESTS = 1000
"""Requests that the ingress accepts beyond those for predictions: polls, image files and cancellations."""

_MMAP_THRESHOLD_BYTES = str(32 * 2**20)
"""Larger allocations get a mapping of their own, which returns to the system when freed."""
_TRIM_THRESHOLD_BYTES = str(2**30)
"""Freed memory that a process keeps for later allocations."""


def build(args: Settings) -> Application:
    """The application: an ingress, and one model deployment for each entry of `args.pools`."""
    pools = {name: _model_deployment(args, name, pool).bind(args, name) for name, pool in args.pools.items()}
    return _ingress_deployment(args).bind(args, pools)


def _ingress_deployment(settings: Settings) -> Deployment:
    max_predictions = sum(pool.max_in_flight for pool in settings.pools.values())
    options: dict[str, Any] = {
        "name": INGRESS,
        **ingress_size(settings),
        "max_ongoing_requests": max_predictions + EXTRA_ONGOING_REQUESTS,
        "logging_config": logging_config(settings.log_format),
        # Serve kills the process after this time, so it is longer than the ingress waits for running predictions.
        "graceful_shutdown_timeout_s": SHUTDOWN_GRACE_S + 15,
        "ray_actor_options": {"num_cpus": settings.ingress_num_cpus, "num_gpus": 0},
    }
    return serve.deployment(**options)(serve.ingress()(Ingress))


def ingress_size(settings: Settings) -> dict[str, Any]:
    if settings.ingress_scaling is None:
        return {"num_replicas": settings.ingress_replicas}
    return {"autoscaling_config": settings.ingress_scaling.model_dump(exclude_none=True)}


def _model_deployment(settings: Settings, name: str, pool: PoolSettings) -> Deployment:
    options: dict[str, Any] = {
        "name": name,
        "autoscaling_config": pool.scaling.model_dump(exclude_none=True),
        "max_ongoing_requests": pool.max_ongoing_requests,
        # The ingress admits at most this many, so Serve's own limit matters only for other callers.
        "max_queued_requests": pool.max_in_flight,
        # A model that fails to load is usually missing, so further retries would only delay the error.
        "max_constructor_retry_count": 2,
        "logging_config": logging_config(settings.log_format),
        "graceful_shutdown_timeout_s": pool.graceful_shutdown_timeout_s,
        "health_check_period_s": pool.health_check_period_s,
        "health_check_timeout_s": pool.health_check_timeout_s,
        "ray_actor_options": {
            "num_cpus": pool.num_cpus,
            "num_gpus": pool.num_gpus,
            "runtime_env": {"env_vars": replica_environment(pool)},
        },
    }
    return serve.deployment(**options)(ModelReplica)


def replica_environment(pool: PoolSettings) -> dict[str, str]:
    """Environment variables for a replica of `pool`, which libraries read once when the process starts.

    `OMP_WAIT_POLICY=PASSIVE` makes idle OpenMP threads sleep; spinning ones would take cores from other replicas.
    Without spinning, two busy replicas on two cores are as fast with two threads each as with one. On a CPU, the malloc
    variables keep freed tensor memory in the process, so that the next step does not have to page it in again.
    """
    threads = {"OMP_WAIT_POLICY": "PASSIVE"}
    if pool.num_threads is not None:
        threads["OMP_NUM_THREADS"] = str(pool.num_threads)
    if pool.device != "cpu":
        return threads
    return threads | {
        "MALLOC_ARENA_MAX": "1",  # Per-thread arenas return memory to the system regardless of the thresholds.
        "MALLOC_MMAP_THRESHOLD_": _MMAP_THRESHOLD_BYTES,
        "MALLOC_TRIM_THRESHOLD_": _TRIM_THRESHOLD_BYTES,
    }
