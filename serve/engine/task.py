"""A job inside the engine: who listens to it, how far it is, and where its time went. Knows no device and no thread."""

import logging
import time
from dataclasses import dataclass, field, replace

from serve.catalog import Size
from serve.engine.adapters import Mix
from serve.engine.draft import Draft
from serve.engine.job import Canceled, Done, EngineEvent, Failed, Job, Listener
from serve.engine.text import Text
from serve.errors import ServiceError
from serve.events import Started

_PREPARATIONS = ("lora", "text", "encode_image")
_log = logging.getLogger(__name__)


class Ticket:
    """What the submitter of a job holds on to."""

    def __init__(self) -> None:
        self.left = False
        """The submitter no longer wants the job."""


@dataclass(slots=True, eq=False)
class Task:
    """One job from its arrival to its end. All but `ticket` belongs to the engine's thread."""

    number: int
    """The smaller, the older."""
    job: Job
    listener: Listener
    ticket: Ticket = field(default_factory=Ticket)
    mix: Mix | None = None
    """Its LoRAs; None until they are on the device."""
    text: Text | None = None
    drafts: list[Draft] | None = None
    """Its images that have no pixels yet; None until they have begun."""
    ended: bool = False
    _submitted_s: float = field(default_factory=time.monotonic)
    _started_s: float | None = None
    _stepped_s: float | None = None
    _spent_s: dict[str, float] = field(default_factory=dict)
    _passes: int = 0
    _shared: int = 0

    def equip(self, mix: Mix | None) -> None:
        """Its LoRAs are on the device, unless `mix` is None; what it carried is no longer needed then."""
        if mix is not None:
            self.mix = mix
            self.job = replace(self.job, loras={})

    @property
    def size(self) -> Size:
        assert self.job.plan.size is not None
        return self.job.plan.size

    @property
    def pixels(self) -> int:
        width, height = self.size
        return width * height

    def tell(self, event: EngineEvent) -> None:
        """A listener that fails is one that has gone."""
        try:
            self.listener(event)
        except Exception:
            _log.exception("a listener failed, so its job is let go")
            self.ticket.left = True

    def start(self) -> None:
        """Says, the first time, that its images are drawn from now on."""
        if self._started_s is None:
            self._started_s = time.monotonic()
            self.tell(Started(self.text.notes if self.text else ()))

    def spend(self, kind: str, seconds: float) -> None:
        """A piece of work was done for this job alone."""
        self._spent_s[kind] = self._spent_s.get(kind, 0.0) + seconds

    def shared_pass(self, batch: int) -> None:
        """A pass of `batch` images held some of its own."""
        self._passes += 1
        self._shared += batch
        self._stepped_s = time.monotonic()

    def finish(self) -> None:
        self._end(Done(self._stages_ms(), self._shared / self._passes if self._passes else 0.0))

    def fail(self, error: ServiceError) -> None:
        self._end(Failed(error))

    def leave(self) -> None:
        self._end(Canceled())

    def _end(self, event: Done | Failed | Canceled) -> None:
        self.ended = True
        self.tell(event)

    def _stages_ms(self) -> dict[str, float]:
        """Each moment counts for one stage: before the first step what is no preparation was the queue, after the last
        step all is decoding."""
        now = time.monotonic()
        started = self._started_s or now
        prepared = {stage: self._spent_s[stage] for stage in _PREPARATIONS if stage in self._spent_s}
        stages = {"queue": started - self._submitted_s - sum(prepared.values()), **prepared}
        if self._stepped_s is not None:
            stages["denoise"] = self._stepped_s - started
        stages["decode"] = now - (self._stepped_s or started)
        return {stage: 1000 * seconds for stage, seconds in stages.items()}
