"""The root of all settings. Its defaults run the embedded models on a CPU, on a loopback address."""

from itertools import combinations
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from serve.model_specs import VariantName
from serve.settings.base import LogFormat, Positive, Seconds, StrictModel
from serve.settings.cog import CogSettings
from serve.settings.downloads import FetchSettings
from serve.settings.loras import LoraSettings
from serve.settings.models import DEFAULT_SERVED_MODELS, DeploymentSettings, ModelSettings, ServedModel, is_same_id
from serve.settings.openai import OpenAiSettings
from serve.settings.pools import PoolSettings, Scaling
from serve.settings.safety import SafetySettings
from serve.settings.storage import FileSettings, OutputSettings
from serve.settings.webhooks import WebhookSettings

Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/?#@\s]+)$")]

_ON_DEMAND = Scaling(min_replicas=0, downscale_to_zero_delay_s=3600)
"""The first request starts the replica and waits for it."""


class Settings(StrictModel):
    """The root of all settings."""

    models: dict[str, ModelSettings] = Field(
        default={
            "dev": ModelSettings(variant="dev", pixel_stride=32, max_sequence_length=64),
            "schnell": ModelSettings(variant="schnell", pixel_stride=32, max_sequence_length=64),
        },
        min_length=1,
    )
    pools: dict[str, PoolSettings] = Field(
        default={
            "dev-bf16": PoolSettings(model="dev"),
            # On two cores, one replica is ready in two thirds of the time of three that start together.
            "dev-fp8": PoolSettings(model="dev", precision="fp8", scaling=_ON_DEMAND),
            "schnell": PoolSettings(model="schnell", scaling=_ON_DEMAND),
        },
        min_length=1,
    )
    served_models: Annotated[tuple[ServedModel, ...], Field(min_length=1)] = DEFAULT_SERVED_MODELS
    deployments: tuple[DeploymentSettings, ...] = ()
    custom_sizes_in_fp8: bool = False
    """Allow `go_fast` for custom sizes. By default they run in bf16, as Replicate documents."""
    fp8_lora_factor: Annotated[float, Field(gt=0)] = 1.5
    """Factor for LoRA scales in fp8 pools. Replicate documents that LoRAs have less effect on float8 weights."""
    max_body_bytes: Positive = 32 * 2**20
    body_timeout_s: Seconds = 20
    """Time in which a request body must arrive, plus a second for each `min_body_bytes_per_s` received."""
    min_body_bytes_per_s: Positive = 2**14
    max_concurrent_bodies: Positive = 256
    """Bodies that may arrive at once. When another one begins, the one that has paused the longest is rejected."""
    max_prompt_chars: Positive = 10_000
    max_image_megapixels: Annotated[float, Field(gt=0)] = 50
    """Input images with larger dimensions in their header are rejected before they are decoded."""
    database_url: Annotated[str | None, Field(pattern="^(sqlite|postgresql)://")] = None
    """Where the records of predictions are; None means an SQLite file in the state folder."""
    storage_url: Annotated[str | None, Field(pattern=r"^(file:///|(s3|gs|az)://[^/]+)")] = None
    """Where images, long inputs and uploaded files are; None means the state folder.

    The credentials of buckets are in the environment variables of their own tools, such as `AWS_ACCESS_KEY_ID`.
    """
    record_max_age_s: Seconds = 30 * 24 * 3600
    """How long the record of a prediction is kept after its end. Its data is removed after `outputs.max_age_s`."""
    max_wait_s: Seconds = 55
    """Upper limit for `Prefer: wait=N`, and the wait for a plain `Prefer: wait`.

    Replicate's clients send the request again if it takes 60 seconds, which would create the prediction twice.
    """
    cors_origins: tuple[Origin, ...] = ()
    """Origins of web pages whose scripts may call the service; `*` allows all."""
    ingress_replicas: Positive = 1
    """On several nodes, ingress replicas need a PostgreSQL `database_url` and a `storage_url` that all can read."""
    ingress_scaling: Scaling | None = None
    """Scales the ingress with its load, instead of `ingress_replicas`."""
    ingress_num_cpus: Annotated[float, Field(ge=0)] = 0.4
    require_token: bool = False
    """Require a token of `python -m serve tokens` on every path but the probes. FLUX_SERVE_TOKEN alone does so too."""
    allow_unauthenticated: bool = False
    """Allow listening on other addresses than loopback without a token. Use only behind a proxy that authenticates."""
    state_folder: Path | None = None
    """Folder of the default database and of files; None means `flux-serve/port-PORT` in the user's state folder.

    Two services must not share it.
    """
    cache_folder: Path | None = None
    """Parent of the default LoRA cache folder; None means the user's cache folder."""
    log_format: LogFormat = "text"
    """Of all processes: lines for people, or one JSON object per message."""
    fetch: FetchSettings = FetchSettings()
    lora: LoraSettings = LoraSettings()
    outputs: OutputSettings = OutputSettings()
    files: FileSettings = FileSettings()
    safety: SafetySettings = SafetySettings()
    cog: CogSettings = CogSettings()
    openai: OpenAiSettings = OpenAiSettings()
    webhooks: WebhookSettings = WebhookSettings()

    @model_validator(mode="after")
    def _references_exist(self) -> Self:
        for name, pool in self.pools.items():
            if pool.model not in self.models:
                raise ValueError(f"pools.{name}.model: no model is named {pool.model!r} in models")
            if pool.device not in pool.dtypes:
                raise ValueError(f"pools.{name}.dtypes: has no entry for device {pool.device!r}")
        return self

    @model_validator(mode="after")
    def _ingress_is_reachable(self) -> Self:
        if self.ingress_scaling is not None and self.ingress_scaling.min_replicas < 1:
            raise ValueError("ingress_scaling.min_replicas: must be at least 1, as nothing else starts a replica")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        models = {model.full_name: model for model in self.served_models}
        versions = [version for model in self.served_models for version in model.versions]
        if len(models) < len(self.served_models) or any(is_same_id(*pair) for pair in combinations(versions, 2)):
            raise ValueError("served_models: names must be unique, and no version id may be the beginning of another")
        if len({(each.owner, each.name) for each in self.deployments}) < len(self.deployments):
            raise ValueError("deployments: names must be unique")
        for index, deployment in enumerate(self.deployments):
            model = models.get(deployment.model)
            if model is None or deployment.version not in (None, *model.versions):
                raise ValueError(f"deployments.{index}: served_models has no such model or version")
        for alias, target in self.openai.model_aliases.items():
            if target is not None and target not in models:
                raise ValueError(f"openai.model_aliases.{alias}: no model is named {target!r} in served_models")
        return self

    def variant_of(self, pool: str) -> VariantName:
        return self.models[self.pools[pool].model].variant
