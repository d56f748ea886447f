"""The databases with which tests run a service."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from benchmarks.api.postgres import PostgresUnavailable, postgres_server


@contextmanager
def database_settings(name: str) -> Iterator[Mapping[str, str]]:
    """The settings for an empty database while the block runs: `sqlite`, the default, or `postgresql`."""
    if name == "sqlite":
        yield {}
        return
    try:
        with postgres_server() as server:
            yield {"database_url": server.url}
    except PostgresUnavailable as error:
        pytest.skip(f"PostgreSQL: {error}")
