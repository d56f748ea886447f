"""Names every metric of the service, and passes recorded values to the backend of this process.

Ray exports a metric under its name with the prefix `ray_`, from every process that records it, with the labels of Ray
and Ray Serve: `deployment`, `application` and `replica`. Values of labels are bounded, and never come from a caller.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
"""Buckets of waits and of whole predictions, which include the start of a replica."""
SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Buckets of single pieces of work."""

_MEGAPIXEL = 2**20
_SIZE_TOLERANCE = 1.1
"""Sizes of one class differ by their aspect ratio."""
_SIZE_LABELS = (0.25, 0.5, 1.0, 2.0)
_BATCH_LABELS = ((1, "1"), (2, "2"), (4, "3-4"), (8, "5-8"))
_MORE = "more"


class Backend(Protocol):
    """Where values go. Called from any thread."""

    def record(self, metric: "Metric", value: float, labels: Mapping[str, str]) -> None:
        """Adds to a counter, which may be 0 to export it; sets a gauge; or adds an observation to a histogram."""


class NoBackend:
    """Drops all values."""

    def record(self, metric: "Metric", value: float, labels: Mapping[str, str]) -> None:
        pass


_backend: Backend = NoBackend()


def use_backend(backend: Backend) -> Backend:
    """Sends all values of this process to `backend`. Returns the one before."""
    global _backend
    previous, _backend = _backend, backend
    return previous


@dataclass(frozen=True, slots=True)
class Metric:
    """The definition of a metric."""

    name: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def exported_names(self) -> tuple[str, ...]:
        """The names of its series in Prometheus."""
        return (f"ray_{self.name}",)

    def _record(self, value: float, labels: Mapping[str, str]) -> None:
        if labels.keys() != set(self.labels):
            raise TypeError(f"{self.name} has the labels {self.labels}, not {tuple(labels)}")
        _backend.record(self, value, labels)


@dataclass(frozen=True, slots=True)
class Counter(Metric):
    """A total, which only grows while its process runs."""

    @property
    def exported_names(self) -> tuple[str, ...]:
        return (f"ray_{self.name}_total",)

    def add(self, value: float = 1, **labels: str) -> None:
        """A value of 0 exports the counter, so that Prometheus sees its first increase."""
        self._record(value, labels)


@dataclass(frozen=True, slots=True)
class Gauge(Metric):
    """A current value."""

    def set(self, value: float, **labels: str) -> None:
        self._record(value, labels)


@dataclass(frozen=True, slots=True)
class Histogram(Metric):
    """The distribution of values. Ray exports counts of buckets exactly, and estimates the sum from them."""

    buckets: tuple[float, ...] = SECONDS

    @property
    def exported_names(self) -> tuple[str, ...]:
        return tuple(f"ray_{self.name}_{suffix}" for suffix in ("bucket", "count", "sum"))

    def observe(self, value: float, **labels: str) -> None:
        self._record(value, labels)


# Predictions, from the ingress.
PREDICTIONS = Counter("flux_predictions", "Predictions that have ended.", ("pool", "outcome"))
FAILURES = Counter("flux_prediction_failures", "Predictions that failed, by class of error.", ("pool", "reason"))
REFUSED = Counter("flux_predictions_refused", "Requests for predictions that got 429 or 503.", ("pool", "reason"))
RETRIES = Counter("flux_prediction_retries", "Calls that were repeated, by what was lost.", ("pool", "lost"))
TOTAL_SECONDS = Histogram("flux_prediction_seconds", "From the request to the end.", ("pool", "outcome"))
QUEUE_SECONDS = Histogram("flux_queue_seconds", "Wait for the first step, without preparation.", ("pool",))
FIRST_STEP_SECONDS = Histogram("flux_first_step_seconds", "From the request to the first step.", ("pool",))
STAGE_SECONDS = Histogram(
    "flux_stage_seconds", "Stages of predictions that succeeded.", ("pool", "stage"), SHORT_SECONDS
)
IMAGES = Counter("flux_images", "Stored images.", ("pool",))
FLAGGED = Counter("flux_images_flagged", "Images that the safety checker withheld.", ("pool",))
OUTPUT_BYTES = Counter("flux_output_bytes", "Size of the stored images.", ("pool",))

# HTTP requests that Ray Serve's own metrics do not tell apart.
RATE_LIMITED = Counter(
    "flux_rate_limited_requests", "Requests beyond the limit a minute of their token, which got 429."
)
INGRESS_LOST = Counter("flux_ingress_lost_requests", "Requests whose ingress died, which got 503. From the proxies.")

# Webhooks, from the ingress.
WEBHOOKS = Counter("flux_webhooks", "Attempts to deliver the last event of a prediction, by result.", ("result",))

# Backlog of webhooks, from every ingress replica with the same values.
WEBHOOKS_UNDELIVERED = Gauge(
    "flux_webhooks_undelivered", "Webhooks of ended predictions: waiting, or dead.", ("status",)
)

# Load of the pools, from every ingress replica with the same values.
POOL_PREDICTIONS = Gauge("flux_pool_predictions", "Predictions that have not ended.", ("pool", "status"))
POOL_LIMIT = Gauge("flux_pool_limit", "Unfinished predictions that the pool accepts.", ("pool",))
OLDEST_WAITING_SECONDS = Gauge("flux_oldest_waiting_seconds", "Age of the oldest one without a step.", ("pool",))
OUTSTANDING_SECONDS = Gauge("flux_outstanding_seconds", "Time the pool needs for its unfinished work.", ("pool",))

# Replicas of pools.
STEP_SECONDS = Histogram(
    "flux_step_seconds", "Passes of the transformer.", ("pool", "megapixels", "batch"), SHORT_SECONDS
)
STEPS = Counter("flux_steps", "Denoising steps of single images.", ("pool",))
PROMPTS = Counter("flux_prompt_cache_requests", "Look-ups of encoded prompts: hit or miss.", ("pool", "result"))
LORAS = Gauge("flux_loras", "LoRAs on the device.", ("pool",))
LORA_SLOTS = Gauge("flux_lora_slots", "LoRA slots on the device: used or total.", ("pool", "kind"))
LORA_LOADS = Counter("flux_lora_loads", "LoRAs copied to the device.", ("pool",))
GPU_MEMORY = Gauge("flux_gpu_memory_bytes", "GPU memory: allocated, peak, reserved, total.", ("pool", "kind"))
COMPILED_GRAPHS = Gauge("flux_compiled_graphs", "Graphs that the replica has compiled since it started.", ("pool",))
START_SECONDS = Gauge("flux_start_seconds", "Stages of the start of a replica.", ("pool", "stage"))

# The LoRA cache.
LORA_REQUESTS = Counter("flux_lora_requests", "Requested LoRAs by where they were: memory, disk, download.", ("tier",))
LORA_CACHE_BYTES = Gauge("flux_lora_cache_bytes", "Size of the cached LoRAs.", ("tier",))
LORA_CACHE_LIMIT_BYTES = Gauge("flux_lora_cache_limit_bytes", "Largest size of the cache.", ("tier",))
LORA_EVICTIONS = Counter("flux_lora_cache_evictions", "LoRAs removed from the cache for others.", ("tier",))
LORA_WRITE_ERRORS = Counter("flux_lora_cache_write_errors", "Failed writes to the disk tier.")
LORA_DOWNLOAD_BYTES = Counter("flux_lora_download_bytes", "Downloaded LoRA files.")
LORA_DOWNLOAD_SECONDS = Histogram("flux_lora_download_seconds", "Downloads of LoRA files.")


def _defined() -> Iterator[Metric]:
    return (each for each in globals().values() if isinstance(each, Metric))


METRICS = tuple(_defined())


def size_label(pixels: int) -> str:
    """The size class of an image, in megapixels."""
    megapixels = pixels / _MEGAPIXEL
    return next((f"{each:g}" for each in _SIZE_LABELS if megapixels <= each * _SIZE_TOLERANCE), _MORE)


def batch_label(images: int) -> str:
    """The class of a batch, by its number of images."""
    return next((label for largest, label in _BATCH_LABELS if images <= largest), _MORE)
