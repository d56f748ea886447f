"""One service for all modules here: the embedded one, as a newcomer starts it."""

from collections.abc import Iterator

import pytest

from serve.launch.subprocess_service import LocalService, local_service
from tests.cluster.probe import Probe, probing


@pytest.fixture(scope="package")
def service(environment: dict[str, str]) -> Iterator[LocalService]:
    with local_service(environment=environment) as running:
        yield running


@pytest.fixture(scope="package")
def probe(service: LocalService, environment: dict[str, str]) -> Iterator[Probe]:
    with probing(service, environment) as looking:
        yield looking
