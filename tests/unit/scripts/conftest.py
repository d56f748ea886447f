"""Fixtures that replace `python -m serve` by a fake service."""

import fcntl
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import demo
from serve.launch import subprocess_service

FAKE = Path(__file__).with_name("fake_service.py")
SUCCEEDED = {
    "id": "p1",
    "status": "succeeded",
    "output": ["data:image/webp;base64,YSB3ZWJw"],
    "error": None,
    "logs": "Using seed: 41\n",
    "metrics": {"seed": 42, "pool": "dev-bf16"},
}


class FakeService:
    """A folder in which `python -m serve` runs fake_service.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "serve").mkdir(parents=True)
        shutil.copy(FAKE, folder / "serve" / "__main__.py")
        self.configure()

    def configure(self, **behaviour: Any) -> None:
        (self.folder / "behaviour.json").write_text(json.dumps({"prediction": SUCCEEDED, **behaviour}))

    @property
    def request(self) -> dict[str, Any]:
        """The last POST request: path, headers, body, and the number of health checks before it."""
        request: dict[str, Any] = json.loads((self.folder / "request.json").read_text())
        return request

    @property
    def received_signal(self) -> str:
        """The name of the last signal that the service received."""
        return (self.folder / "signal").read_text()

    def has_running_processes(self, timeout_s: float = 5) -> bool:
        """Whether the service or its child still holds the lock after `timeout_s`."""
        deadline = time.monotonic() + timeout_s  # killed processes take a moment to end
        with (self.folder / "alive.lock").open() as lock:
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(0.01)
                else:
                    return False
        return True


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeService:
    service = FakeService(tmp_path / "service")
    monkeypatch.setattr(subprocess_service, "ROOT", service.folder)
    return service


@pytest.fixture
def run_demo(fake: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs the demo in an empty folder, with the fake service."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("FLUX_SERVE_TOKEN", raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield lambda *arguments: demo.main(list(arguments))
    for number, handler in handlers.items():
        signal.signal(number, handler)
