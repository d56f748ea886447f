"""The record of one prediction: an immutable value and its state transitions.

A prediction that has ended never changes again: every transition returns it unchanged.
"""

import base64
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict

from serve.access.caller import NO_OWNER
from serve.generation_plan import GenerationPlan
from serve.predictions.webhook import Webhook

Status = Literal["starting", "processing", "succeeded", "failed", "canceled"]

FINAL_STATUSES: frozenset[Status] = frozenset({"succeeded", "failed", "canceled"})


class Output(BaseModel):
    """A stored image: its index among the requested images, and its name in the `OutputStore`."""

    model_config = ConfigDict(frozen=True)

    index: int
    name: str
    size_bytes: int = 0
    url: str | None = None
    """Where it was uploaded for the caller."""


class Progress(BaseModel):
    """Image `index` has completed `step` of its `total` denoising steps."""

    model_config = ConfigDict(frozen=True)

    index: int
    step: int
    total: int
    preview_step: int = 0
    """The step of the newest preview of the unfinished image; 0 without one."""


class Prediction(BaseModel):
    """JSON-serializable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    owner: str = NO_OWNER
    """The id of the token that created it."""
    model: str
    """`owner/name` of the served model."""
    version: str
    inputs: dict[str, Any]
    """As the caller sent them, before defaults and coercion."""
    has_shortened_inputs: bool = False
    """Whether `inputs` has only the beginning of long texts, such as images in `data:` URIs."""
    plan: GenerationPlan
    webhook: Webhook | None = None
    upload_url: str | None = None
    """Images are sent there with PUT."""
    created_at: AwareDatetime
    deadline: AwareDatetime | None = None
    """The prediction is canceled if it has not ended by then."""
    request_id: str = ""
    """Of the HTTP request that created the prediction, for the log."""
    started_at: AwareDatetime | None = None
    completed_at: AwareDatetime | None = None
    status: Status = "starting"
    is_generated: bool = False
    """Whether a replica has begun to generate it since a process took it up."""
    outputs: tuple[Output, ...] = ()
    """By index; withheld images are missing."""
    progress: tuple[Progress, ...] = ()
    """By index; images whose first step has not ended are missing."""
    error: str | None = None
    logs: str = ""
    metrics: dict[str, Any] = {}
    """Numbers and short texts; `loras` has an entry per LoRA."""
    stages_ms: dict[str, float] = {}
    """Wall time of each stage so far."""
    data_removed: bool = False
    """Whether inputs, outputs and logs were removed, some time after the end."""
    revision: int = 0
    """Increases by one with every change."""

    @property
    def ended(self) -> bool:
        return self.status in FINAL_STATUSES

    @property
    def is_fetched(self) -> bool:
        """Whether its input images are loaded, which the size of its images may depend on."""
        return self.plan.size is not None

    @property
    def log_id(self) -> str:
        """The beginning of log lines about the prediction."""
        request = f" (request {self.request_id})" if self.request_id else ""
        return f"prediction {self.id}{request}"

    @property
    def log_fields(self) -> dict[str, str]:
        """Fields of JSON messages that are logged outside of the prediction's task, as `extra`."""
        return {"prediction_id": self.id, "pool": self.plan.pool}

    def is_overdue(self, now: datetime) -> bool:
        return not self.ended and self.deadline is not None and self.deadline <= now

    def started(self, at: datetime) -> Self:
        """The prediction with status `processing`; the first denoising step is about to run."""
        if self.status == "starting":
            return self._changed(status="processing", started_at=at, is_generated=True)
        return self if self.is_generated else self._changed(is_generated=True)

    def with_log_lines(self, *lines: str) -> Self:
        return self._changed(logs=self.logs + "".join(f"{line}\n" for line in lines))

    def with_plan(self, plan: GenerationPlan) -> Self:
        return self._changed(plan=plan)

    def with_output(self, output: Output) -> Self:
        return self._changed(outputs=tuple(sorted((*self.outputs, output), key=lambda each: each.index)))

    def with_progress(self, index: int, step: int, total: int) -> Self:
        before = self._progress_of(index)
        return self._with(before.model_copy(update={"step": step, "total": total}))

    def with_preview(self, index: int, step: int, total: int) -> Self:
        """The prediction with a preview, which may be of an earlier step than the last one."""
        before = self._progress_of(index)
        changes = {"step": max(step, before.step), "total": total, "preview_step": step}
        return self._with(before.model_copy(update=changes))

    def without_preview(self, index: int) -> Self:
        """The prediction when image `index` is finished, or was withheld."""
        return self._with(self._progress_of(index).model_copy(update={"preview_step": 0}))

    def with_stage_times(self, stages_ms: Mapping[str, float]) -> Self:
        """Adds milliseconds to stages."""
        sums = {stage: self.stages_ms.get(stage, 0.0) + duration_ms for stage, duration_ms in stages_ms.items()}
        return self._changed(stages_ms=self.stages_ms | sums)

    def with_metrics(self, metrics: Mapping[str, Any]) -> Self:
        return self._changed(metrics=self.metrics | dict(metrics))

    def claimed(self) -> Self:
        """The prediction when another process has its lease. Callers see no change."""
        return self.model_copy(update={"is_generated": False})

    def resumed(self) -> Self:
        """The prediction when another process takes it up: its images are generated again, from the same seeds."""
        line = "The process that ran this prediction was lost; another one starts it again"
        return self._changed(outputs=(), progress=(), stages_ms={}, logs=f"{self.logs}{line}\n")

    def succeeded(self, at: datetime) -> Self:
        return self._end("succeeded", at)

    def failed(self, at: datetime, error: str) -> Self:
        return self._end("failed", at, error)

    def canceled(self, at: datetime) -> Self:
        return self._end("canceled", at)

    def without_data(self) -> Self:
        """An ended prediction without its inputs, outputs and logs."""
        plan = self.plan.model_copy(update={"prompt": ""})
        changes = {"inputs": {}, "outputs": (), "logs": "", "plan": plan, "data_removed": True}
        return self.model_copy(update={**changes, "revision": self.revision + 1})

    def _progress_of(self, index: int) -> Progress:
        no_progress = Progress(index=index, step=0, total=0)
        return next((each for each in self.progress if each.index == index), no_progress)

    def _with(self, progress: Progress) -> Self:
        others = (each for each in self.progress if each.index != progress.index)
        return self._changed(progress=tuple(sorted((*others, progress), key=lambda each: each.index)))

    def _end(self, status: Status, at: datetime, error: str | None = None) -> Self:
        times_s = {"total_time": (at - self.created_at).total_seconds()}
        if self.started_at is not None:
            times_s["predict_time"] = (at - self.started_at).total_seconds()
        return self._changed(status=status, completed_at=at, error=error, metrics=self.metrics | times_s)

    def _changed(self, **changes: object) -> Self:
        return self if self.ended else self.model_copy(update={**changes, "revision": self.revision + 1})


def new_id() -> str:
    """128 random bits as 26 lowercase letters and digits: not guessable, valid in paths and file names."""
    return base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()


def utc_now() -> datetime:
    return datetime.now(UTC)


def elapsed_ms(start_s: float) -> float:
    """Milliseconds since a value of `time.perf_counter`."""
    return (time.perf_counter() - start_s) * 1000


def rfc3339(moment: datetime) -> str:
    """`2026-01-31T12:00:00.000Z`, as clients of Replicate's API expect it."""
    utc = moment.astimezone(UTC) if moment.utcoffset() else moment
    return utc.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def timestamps(prediction: Prediction) -> dict[str, str | None]:
    """The timestamps of a response."""
    times = {
        "created_at": prediction.created_at,
        "started_at": prediction.started_at,
        "completed_at": prediction.completed_at,
    }
    return {name: rfc3339(at) if at else None for name, at in times.items()}
