"""Fixtures for tests against a service on a real local Ray cluster. Each module or package defines `service`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.launch.subprocess_service import ROOT, LocalService
from tests.cluster.probe import Probe, start_probe


@pytest.fixture(scope="session")
def home_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The HOME folder of all services of the session, so that the embedded checkpoints are built only once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def environment(home_folder: Path) -> dict[str, str]:
    """Environment for child processes, without the caller's variables for Ray, Hugging Face and this service."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "FLUX_SERVE_", "HF_", "XDG_"))
    }
    return inherited | {
        "HOME": str(home_folder),
        "XDG_CACHE_HOME": str(home_folder / ".cache"),
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="module")
def probe(service: LocalService, environment: dict[str, str]) -> Iterator[Probe]:
    """Reads engine counters and replica counts from the service's cluster."""
    with start_probe(service, environment) as running_probe:
        yield running_probe
