"""A fake `serve` in a folder of its own, taken for the real one."""

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
    """What `python -m serve` is in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "serve").mkdir(parents=True)
        shutil.copy(FAKE, folder / "serve" / "__main__.py")
        self.behave()

    def behave(self, **behaviour: Any) -> None:
        (self.folder / "behaviour.json").write_text(json.dumps({"prediction": SUCCEEDED, **behaviour}))

    @property
    def asked(self) -> dict[str, Any]:
        asked: dict[str, Any] = json.loads((self.folder / "asked.json").read_text())
        return asked

    @property
    def ended(self) -> str:
        """The name of the signal that it was last sent."""
        return (self.folder / "ended").read_text()

    def left_something_running(self, within_s: float = 5) -> bool:
        """Whether a process of the service still holds its lock; one that was killed may take a moment to go."""
        until = time.monotonic() + within_s
        with (self.folder / "alive.lock").open() as lock:
            while time.monotonic() < until:
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
    """Runs the demo in an empty folder, with the fake in the service's place."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("FLUX_SERVE_TOKEN", raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield lambda *arguments: demo.main(list(arguments))
    for number, handler in handlers.items():
        signal.signal(number, handler)
