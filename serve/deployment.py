"""The composition root: a tree of settings becomes a Ray Serve application. Nothing else imports this module.

    serve run serve.deployment:build            the embedded service
    serve deploy serve_config.yaml              production, where `args` is the tree of settings

Ray reads the annotation of `build` at run time, so this module must not postpone annotations.
"""

from typing import Any

from ray import serve
from ray.serve import Application, Deployment

from serve.ingress import Ingress
from serve.model_replica import ModelReplica
from serve.settings import PoolSettings, Settings

INGRESS = "ingress"

STATUS_REQUESTS = 1000
"""Requests the ingress holds beside those that wait for a prediction: polls, files, cancellations."""
_KEPT_BLOCK_BYTES = str(32 * 2**20)
"""A larger block of memory comes from the system, and goes back to it."""
_KEPT_BYTES = str(2**30)
"""Free memory that a replica may keep for its next step."""


def build(args: Settings) -> Application:
    """The application: one ingress, and a pool of replicas for each row of `args.pools`."""
    pools = {name: _pool(name, row).bind(args, name) for name, row in args.pools.items()}
    return _ingress(args).bind(args, pools)


def _ingress(settings: Settings) -> Deployment:
    waiting = sum(pool.max_in_flight for pool in settings.pools.values())
    options: dict[str, Any] = {
        "name": INGRESS,
        "num_replicas": settings.ingress_replicas,
        "max_ongoing_requests": waiting + STATUS_REQUESTS,
        "ray_actor_options": {"num_cpus": settings.ingress_num_cpus, "num_gpus": 0},
    }
    return serve.deployment(**options)(serve.ingress()(Ingress))


def _pool(name: str, row: PoolSettings) -> Deployment:
    options: dict[str, Any] = {
        "name": name,
        "autoscaling_config": row.scaling.model_dump(exclude_none=True),
        "max_ongoing_requests": row.max_ongoing_requests,
        # The ingress admits no more than this in all, so Serve's own limit only guards against other callers.
        "max_queued_requests": row.max_in_flight,
        # A model that cannot be loaded is missing, not unlucky: say so soon.
        "max_constructor_retry_count": 2,
        "graceful_shutdown_timeout_s": row.graceful_shutdown_timeout_s,
        "health_check_period_s": row.health_check_period_s,
        "health_check_timeout_s": row.health_check_timeout_s,
        "ray_actor_options": {
            "num_cpus": row.num_cpus,
            "num_gpus": row.num_gpus,
            "runtime_env": {"env_vars": replica_environment(row)},
        },
    }
    return serve.deployment(**options)(ModelReplica)


def replica_environment(row: PoolSettings) -> dict[str, str]:
    """What must be set before any code of ours runs in a replica: these are read once, at the start of the process.

    OpenMP: a thread that spins while it waits takes the core from another replica's work; a passive one gives it away.
    On a CPU the memory of a step's tensors goes back to the allocator and not to the system, from which the next step
    would have to ask it again page by page.
    """
    threads = {"OMP_NUM_THREADS": str(row.num_threads), "OMP_WAIT_POLICY": "PASSIVE"}
    if row.device != "cpu":
        return threads
    return threads | {
        "MALLOC_ARENA_MAX": "1",  # Memory of a thread's own goes back to the system whatever the others say.
        "MALLOC_MMAP_THRESHOLD_": _KEPT_BLOCK_BYTES,
        "MALLOC_TRIM_THRESHOLD_": _KEPT_BYTES,
    }
