"""A device that computes asynchronously on a fake clock, in place of the functions of `serve.engine.device`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import Tensor

from serve.engine import device
from serve.engine.denoiser import Denoiser
from tests.fakes import FakeClock

PASS_S = 0.1
QUEUE_S = 0.02
"""How long the thread needs to queue a pass."""
LAUNCH_S = 0.005
"""How long an idle device waits for the first kernel of a pass."""


@dataclass(frozen=True)
class FakeEvent:
    """The end of the work that was queued before it."""

    device: "FakeDevice"
    end_s: float
    pass_number: int
    error: Exception | None

    def query(self) -> bool:
        return self.device.clock.elapsed_s >= self.end_s

    def synchronize(self) -> None:
        self.device.log.append(f"wait {self.pass_number}")
        self.device.clock.elapsed_s = max(self.device.clock.elapsed_s, self.end_s)
        if self.error is not None:
            raise self.error

    def seconds_since(self, earlier: "FakeEvent") -> float:
        return self.end_s - earlier.end_s


@dataclass
class FakeDevice:
    """Computes a pass in `pass_s` after its first kernel. The result is there at once, and the event later."""

    clock: FakeClock = field(default_factory=FakeClock)
    pass_s: float = PASS_S
    busy_until_s: float = 0.0
    idle_s: float = 0.0
    """Time between two passes in which the device had nothing to do."""
    passes: int = 0
    log: list[str] = field(default_factory=list)
    failing_passes: set[int] = field(default_factory=set)
    """Numbers of passes, from 1, that fail when the device computes them."""
    on_queue: Callable[[], object] = lambda: None
    """Called before a pass is queued."""

    def record_event(self, _: Any) -> FakeEvent:
        error = RuntimeError("illegal address") if self.passes in self.failing_passes else None
        return FakeEvent(self, max(self.busy_until_s, self.clock.elapsed_s), self.passes, error)

    def synchronize(self, _: Any) -> None:
        self.clock.elapsed_s = max(self.clock.elapsed_s, self.busy_until_s)

    def queue_pass(self) -> None:
        self.on_queue()
        queued_s = self.clock.elapsed_s
        start_s = self.busy_until_s if queued_s < self.busy_until_s else queued_s + LAUNCH_S
        self.clock.elapsed_s += QUEUE_S
        if self.passes:
            self.idle_s += start_s - self.busy_until_s
        self.busy_until_s = max(start_s + self.pass_s, self.clock.elapsed_s)
        self.passes += 1
        self.log.append(f"queue {self.passes}")

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Steps of all denoisers run on this device."""
        step = Denoiser.step

        def queue_step(denoiser: Denoiser, images: Any) -> list[Tensor]:
            self.queue_pass()
            return step(denoiser, images)

        monkeypatch.setattr(Denoiser, "step", queue_step)
        monkeypatch.setattr(device, "is_asynchronous", lambda _: True)
        monkeypatch.setattr(device, "record_event", self.record_event)
        monkeypatch.setattr(device, "synchronize", self.synchronize)
