"""A fake service that tests start with `serve.launch.subprocess_service` in place of the real one."""

import fcntl
import json
import shutil
import time
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("fake_service_main.py")
SUCCEEDED_PREDICTION = {
    "id": "p1",
    "status": "succeeded",
    "output": ["data:image/webp;base64,YSB3ZWJw"],
    "error": None,
    "logs": "Using seed: 41\n",
    "metrics": {"seed": 42, "pool": "dev-bf16"},
}


class FakeService:
    """A folder in which `python -m serve` runs `fake_service_main.py`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "serve").mkdir(parents=True)
        shutil.copy(PROGRAM, folder / "serve" / "__main__.py")
        self.configure()

    def configure(self, **behaviour: Any) -> None:
        (self.folder / "behaviour.json").write_text(json.dumps({"prediction": SUCCEEDED_PREDICTION, **behaviour}))

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
