"""Services on a real local Ray, with a HOME of their own. Each module says which one it asks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.launch.subprocess_service import ROOT, LocalService
from tests.cluster.probe import Probe, probing


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The HOME of all services of the session: embedded checkpoints are built in it once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def environment(home: Path) -> dict[str, str]:
    """A child's environment: nothing of the caller's that Ray or our settings read."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "FLUX_SERVE_", "HF_"))}
    return kept | {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="module")
def probe(service: LocalService, environment: dict[str, str]) -> Iterator[Probe]:
    """A look into the service's cluster: engine counters and replica counts."""
    with probing(service, environment) as looking:
        yield looking
