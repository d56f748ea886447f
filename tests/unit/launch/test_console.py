"""What the command line writes to the terminal."""

import json
import logging
from collections.abc import Iterator

import pytest

from serve.launch.console import LOGGER, use_console
from serve.settings import LogFormat


@pytest.fixture(autouse=True)
def restored_logger() -> Iterator[None]:
    logger = logging.getLogger(LOGGER)
    before = logger.level, logger.handlers, logger.propagate
    yield
    logger.level, logger.handlers, logger.propagate = before


def write(log_format: LogFormat) -> None:
    use_console(log_format)
    logging.getLogger(f"{LOGGER}.foreground").info("ready: %s", "here")
    logging.getLogger(LOGGER).error("it failed")


def test_text_is_the_message_and_errors_are_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    write("text")
    assert capsys.readouterr() == ("ready: here\n", "serve: it failed\n")


def test_json_has_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    write("json")
    output, errors = map(json.loads, capsys.readouterr())
    assert (output["levelname"], output["name"], output["message"]) == (
        "INFO",
        f"{LOGGER}.foreground",
        "ready: here",
    )
    assert (errors["levelname"], errors["message"]) == ("ERROR", "it failed")
