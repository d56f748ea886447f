"""Describes a service that is ready: its addresses, and how its pools compute."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from serve.settings import PoolSettings, Settings

RUNNING = "RUNNING"
STARTING = "STARTING"
CALL_TIMEOUT_S = 10.0
_POOL_TITLES = ("POOL", "MODEL", "DEVICE", "PRECISION", "COMPUTE", "REPLICAS")


@dataclass(frozen=True, slots=True)
class PoolState:
    """The replicas of a pool now."""

    running: int = 0
    starting: int = 0
    compute_dtype: str | None = None
    """In which the transformer of a running replica computes; None without one."""


def report_lines(
    settings: Settings, states: Mapping[str, PoolState], url: str, metrics_url: str, logs: str
) -> list[str]:
    """The lines of the report. `url` is that of the service, and `logs` the folder of its logs."""
    addresses = (("service", url), ("playground", f"{url}/playground"), ("metrics", metrics_url), ("logs", logs))
    pools = (_cells(name, pool, states.get(name, PoolState())) for name, pool in settings.pools.items())
    return [*_aligned(addresses), *_aligned((_POOL_TITLES, *pools))]


def read_pool_states(application: str, settings: Settings) -> dict[str, PoolState]:
    """The state of each pool. Calls only replicas that run, so no pool starts."""
    states = {}
    deployments = serve.status().applications[application].deployments
    for name in settings.pools:
        replicas = deployments[name].replica_states if name in deployments else {}
        running = replicas.get(RUNNING, 0)
        compute_dtype = _compute_dtype(application, name) if running else None
        states[name] = PoolState(running, replicas.get(STARTING, 0), compute_dtype)
    return states


def http_url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _compute_dtype(application: str, pool: str) -> str | None:
    with contextlib.suppress(RayError, RayServeException, TimeoutError):  # The replica may have ended meanwhile.
        answers = serve.get_deployment_handle(pool, application).broadcast("compute_dtype")
        return next(iter(answers.results(timeout_s=CALL_TIMEOUT_S)), None)
    return None


def _cells(name: str, pool: PoolSettings, state: PoolState) -> Sequence[str]:
    compute_dtype = state.compute_dtype or pool.dtypes[pool.device].transformer
    return name, pool.model, pool.device, pool.precision, compute_dtype, _replicas(state)


def _replicas(state: PoolState) -> str:
    counts = ((state.running, "running"), (state.starting, "starting"))
    return ", ".join(f"{count} {what}" for count, what in counts if count) or "none: the first request starts one"


def _aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """A line for each row, with the cells of each column below each other."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
