"""Messages of the package in the log of a replica."""

import logging
from collections.abc import Iterator

import pytest

from serve.logs import use_replica_log


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("serve", "ray.serve")]
    before = [(logger.level, logger.handlers) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers = handlers


def test_info_messages_go_to_the_handlers_of_ray_serve() -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("ray.serve").handlers = [handler]
    logging.getLogger("serve.engine").info("before")
    use_replica_log()
    logging.getLogger("serve.engine").info("after")
    assert [record.getMessage() for record in records] == ["after"]
