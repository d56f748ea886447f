"""The fixture that runs the demo."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts import demo
from tests.fake_service import FakeService


@pytest.fixture
def run_demo(
    fake_service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., int]]:
    """Runs the demo in an empty folder, with the fake service."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("FLUX_SERVE_TOKEN", raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield lambda *arguments: demo.main(list(arguments))
    for number, handler in handlers.items():
        signal.signal(number, handler)
