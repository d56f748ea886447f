"""The embedded service with default settings, shared by all modules of this package."""

from collections.abc import Iterator

import pytest

from serve.launch.subprocess_service import LocalService, local_service
from tests.cluster.probe import Probe, start_probe


@pytest.fixture(scope="package")
def service(environment: dict[str, str]) -> Iterator[LocalService]:
    with local_service(environment=environment) as running_service:
        yield running_service


@pytest.fixture(scope="package")
def probe(service: LocalService, environment: dict[str, str]) -> Iterator[Probe]:
    with start_probe(service, environment) as running_probe:
        yield running_probe
