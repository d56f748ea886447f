"""Messages of the package in Ray Serve's log of a process, as text and as JSON."""

import contextvars
import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import pytest
from ray.serve._private.common import ServeComponentType
from ray.serve._private.logging_utils import configure_component_logger
from ray.serve.schema import LoggingConfig

from serve import logs, ray_logs
from serve.ray_logs import logging_config, use_serve_log
from serve.settings import LogFormat


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("serve", "ray.serve")]
    before = [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    yield
    for logger, (level, handlers, propagate) in zip(loggers, before, strict=True):
        for handler in logger.handlers:
            if isinstance(handler, MemoryHandler) and handler.target is not None:
                handler.target.close()
        logger.setLevel(level)
        logger.handlers = handlers
        logger.propagate = propagate


def set_up(folder: Path, log_format: LogFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray Serve and then a replica of `pool-a` do."""
    monkeypatch.setattr("ray.serve._private.logging_utils.RAY_SERVE_LOG_TO_STDERR", True)
    config = logging_config(log_format) or LoggingConfig()
    configure_component_logger(
        component_name="pool-a",
        component_id="replica-1",
        component_type=ServeComponentType.REPLICA,
        logging_config=config.model_copy(update={"logs_dir": str(folder)}),
        max_bytes=10**6,
        backup_count=1,
    )
    use_serve_log(log_format, {"pool": "pool-a"})


def lines(folder: Path) -> list[str]:
    [path] = folder.glob("*.log")
    return path.read_text().splitlines()


def fail() -> None:
    try:
        raise ValueError("a cause")
    except ValueError:
        logging.getLogger("serve.engine").exception("it failed")


def test_each_json_line_has_the_fields_of_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(tmp_path, "json", monkeypatch)

    def in_context() -> None:
        logs.set_prediction("p1", "r1", "pool-a")
        logging.getLogger("serve.engine").info("two\nlines of %s", "text")

    contextvars.Context().run(in_context)
    fail()
    first, failure = map(json.loads, lines(tmp_path))
    expected: dict[str, Any] = {
        "levelname": "INFO",
        "name": "serve.engine",
        "message": "two\nlines of text",
        "prediction_id": "p1",
        "request_id": "r1",
        "pool": "pool-a",
        "deployment": "pool-a",
        "replica": "replica-1",
    }
    assert first | expected == first
    assert datetime.fromtimestamp(first["created"], UTC).year >= 2026
    assert (failure["levelname"], failure["pool"]) == ("ERROR", "pool-a")
    assert "ValueError: a cause" in failure["exc_text"]
    assert "prediction_id" not in failure


def test_lines_are_text_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(tmp_path, "text", monkeypatch)
    logging.getLogger("serve.engine").info("it happened")
    [line] = lines(tmp_path)
    assert line.startswith("INFO")
    assert line.endswith("it happened")


def test_info_messages_go_to_the_handlers_of_ray_serve() -> None:
    stream = io.StringIO()
    logging.getLogger("ray.serve").handlers = [logging.StreamHandler(stream)]
    logging.getLogger("serve.engine").info("before")
    use_serve_log("text")
    logging.getLogger("serve.engine").info("after")
    assert stream.getvalue() == "after\n"


def test_actor_outside_ray_keeps_its_log() -> None:
    before = logging.getLogger("serve").handlers
    ray_logs.use_actor_log("loras", "json")
    assert logging.getLogger("serve").handlers is before
