"""Everything that can be set: one frozen tree in which an unknown key is a fault. Knows neither Ray nor torch.

The defaults are the embedded service: the small model that comes along, a CPU, loopback. `serve_config.yaml` is the
production tree.
This is the only module that reads the environment, and only for secrets: they never stand in a file or a plan.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from serve.model_specs import EMBEDDED, Size, VariantName

Precision = Literal["bf16", "fp8", "float32"]
Dtype = Literal["bfloat16", "float16", "float32"]
Device = Literal["cpu", "cuda"]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(Strict):
    """A checkpoint, and the facts about it that are checked when it is loaded."""

    variant: VariantName
    source: str = EMBEDDED
    """`embedded`, the small model that comes along; a folder in diffusers' layout; or a repository of the hub."""
    revision: str | None = None
    """Commit of the hub repository."""
    pixel_stride: Positive = 16
    """Pixels a side of one transformer token: the VAE's factor times the 2x2 packing of latents."""
    max_sequence_length: Positive
    """Length to which T5 pads and cuts every prompt."""


class Dtypes(Strict):
    transformer: Dtype
    text_encoders: Dtype
    vae: Dtype


class Scaling(Strict):
    """How many replicas a pool has. Ray Serve's own words; the delays are short because requests take seconds."""

    min_replicas: Annotated[int, Field(ge=0)] = 1
    initial_replicas: Annotated[int, Field(ge=0)] | None = None
    max_replicas: Positive = 1
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 4
    metrics_interval_s: Seconds = 1
    look_back_period_s: Seconds = 5
    upscale_delay_s: Annotated[float, Field(ge=0)] = 3
    downscale_delay_s: Annotated[float, Field(ge=0)] = 60
    downscale_to_zero_delay_s: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is larger than max_replicas")
        return self


class PoolSettings(Strict):
    """One row: a pool of replicas that all serve one model at one precision."""

    model: str
    """Name of a row in `models`."""
    precision: Precision = "bf16"
    device: Device = "cpu"
    dtypes: dict[Device, Dtypes] = Field(
        default={
            # bf16 convolutions on a CPU are 30 to 60 times slower than float32 ones.
            "cpu": Dtypes(transformer="bfloat16", text_encoders="bfloat16", vae="float32"),
            "cuda": Dtypes(transformer="bfloat16", text_encoders="bfloat16", vae="bfloat16"),
        }
    )
    quantize_t5: bool = False
    """Keep T5's linears in float8 too: half its memory."""
    max_batch: Positive = 8
    """Images that share one transformer pass."""
    disable_batching: bool = False
    """Run each image by itself: on a GPU the batch size may change rounding, this rules it out."""
    warmup_sizes: tuple[Size, ...] = ((512, 512), (1024, 1024))
    """Drawn once before a replica says that it is ready."""
    max_megapixels: Annotated[float, Field(gt=0)] = 2.1
    """Larger pictures are refused."""
    num_threads: Positive = 1
    """CPU threads of torch. Two busy processes of two threads each on two cores are 35 times slower than with one."""
    prompt_cache_entries: Annotated[int, Field(ge=0)] = 64
    lora_bytes: Positive = 256 * 2**20
    """Memory of the device that is set aside for LoRAs: for FLUX 11.2 MB for each rank, 179 MB for one of rank 16."""
    batch_across_loras: bool = True
    """Images with different LoRAs share a pass; without, only those with the same LoRAs at the same scales."""
    max_in_flight: Positive = 64
    """Predictions accepted for this pool and not ended, over all replicas; the next one is answered 429."""
    max_ongoing_requests: Positive = 16
    """Predictions that one replica works on at once."""
    graceful_shutdown_timeout_s: Annotated[float, Field(ge=120)] = 120
    """A replica that is taken away may finish what it has begun for this long."""
    health_check_period_s: Seconds = 10
    health_check_timeout_s: Seconds = 30
    num_cpus: Annotated[float, Field(ge=0)] = 0.4
    num_gpus: Annotated[float, Field(ge=0)] = 0
    scaling: Scaling = Scaling()


class ServedModel(Strict):
    """A model as callers name it: `owner/name`, the version ids it answers to, and inputs it has by default."""

    owner: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    versions: Annotated[tuple[str, ...], Field(min_length=1)]
    default_inputs: dict[str, Any] = {}

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"


class FetchSettings(Strict):
    """Bounds on what is fetched from URLs in requests."""

    max_bytes: Positive = 64 * 2**20
    connect_timeout_s: Seconds = 5
    read_timeout_s: Seconds = 15
    total_timeout_s: Seconds = 60
    max_redirects: Annotated[int, Field(ge=0)] = 5
    max_attempts: Positive = 3
    """In all, where the failure may pass: no connection, 429, or a 5xx."""
    backoff_s: Seconds = 0.5
    """Pause before the second attempt; it doubles with each further one, less up to half by chance."""
    max_concurrent: Positive = 16
    allowed_hosts: tuple[str, ...] = ()
    """Host names or addresses (with `:port` to narrow) that may be fetched although they are not public."""


Url = Annotated[str, Field(pattern=r"^https?://[^/?#@]+(/[^?#]*)?$")]


class LoraFetchSettings(FetchSettings):
    """The same bounds for LoRAs, which are larger than pictures."""

    max_bytes: Positive = 2 * 2**30
    read_timeout_s: Seconds = 30
    total_timeout_s: Seconds = 900
    max_attempts: Positive = 4
    max_concurrent: Positive = 8


class LoraCacheSettings(Strict):
    """The LoRAs that are at hand: one process for the whole cluster, with what it needs to outlive a restart."""

    memory_bytes: Positive = 64 * 2**20
    """Of its node's object store. FLUX LoRAs take tens to hundreds of MB each."""
    disk_bytes: Positive = 4 * 2**30
    folder: Path | None = None
    """Where they lie on that node's disk; None is `loras` in the cache folder."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {"node:__internal_head__": 0.001}
    """Ray resources of the node that it runs on, which must always be there: what lies in its memory keeps a node from
    being taken away. By default the head node."""
    start_timeout_s: Seconds = 120


class LoraSettings(Strict):
    """Where LoRAs may come from, and bounds on what is taken."""

    aliases: dict[str, str] = {}
    """The operator's own names: a name to any reference that callers could write, and to local files."""
    folders: tuple[Path, ...] = ()
    """Local folders whose files callers may name by path; none by default."""
    allow_http: bool = False
    """Fetch LoRAs over plain http too, where anybody on the way can exchange them."""
    huggingface_url: Url = "https://huggingface.co"
    civitai_url: Url = "https://civitai.com"
    replicate_url: Url = "https://replicate.com"
    s3_url: Url = "https://{bucket}.s3.amazonaws.com"
    """Base of the objects of a bucket; an own store may have `http://store.internal:9000/{bucket}`."""
    fetch: LoraFetchSettings = LoraFetchSettings()
    cache: LoraCacheSettings = LoraCacheSettings()
    max_unpacked_bytes: Positive = 4 * 2**30
    """All that an archive may hold, unpacked."""
    max_rank: Positive = 256
    max_tensors: Positive = 10_000
    revalidate_after_s: Seconds = 300
    """Age from which a name that may mean other weights by now, such as `owner/name`, is looked up again."""
    failure_ttl_s: Seconds = 30
    """A reference that failed fails again at once for this long."""


class OutputSettings(Strict):
    """Where finished pictures lie, and how answers name them."""

    folder: Path | None = None
    """Local folder; None keeps them in a temporary one. With several nodes it must be shared by them."""
    public_url: str = "http://127.0.0.1:8000"
    """Base of every URL in an answer. Never taken from the Host header, which a client chooses."""
    delivery: Literal["auto", "data", "url"] = "auto"
    """`auto`: `data:` URIs while `public_url` is plain http, since official clients wrap only https: and data:."""
    max_age_s: Seconds = 3600
    max_bytes: Positive = 2 * 2**30

    @property
    def as_data(self) -> bool:
        return self.delivery == "data" or (self.delivery == "auto" and not self.public_url.startswith("https:"))


class SafetySettings(Strict):
    checker: Literal["opennsfw", "flux", "none"] = "opennsfw"
    """`opennsfw` ships its weights in its package; `flux` is the reference's two stages, which need hub models."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Score from which `opennsfw` flags."""
    concept_model: str = "CompVis/stable-diffusion-safety-checker"
    classifier_model: str = "Falconsai/nsfw_image_detection"
    device: Device = "cpu"
    allow_disabling: bool = True
    """Whether `disable_safety_checker` is obeyed."""


class Settings(Strict):
    models: Annotated[dict[str, ModelSettings], Field(min_length=1)] = {
        "dev": ModelSettings(variant="dev", pixel_stride=32, max_sequence_length=64),
        "schnell": ModelSettings(variant="schnell", pixel_stride=32, max_sequence_length=64),
    }
    pools: Annotated[dict[str, PoolSettings], Field(min_length=1)] = {
        "dev-bf16": PoolSettings(model="dev"),
        "dev-fp8": PoolSettings(model="dev", precision="fp8"),
        "schnell": PoolSettings(model="schnell"),
    }
    served_models: Annotated[tuple[ServedModel, ...], Field(min_length=1)] = (
        ServedModel(owner="black-forest-labs", name="flux-dev-lora", versions=("embedded",)),
        ServedModel(
            owner="fofr",
            name="flux-handwriting-and-sketch",
            versions=("d592f697",),
            default_inputs={"replicate_weights": "embedded:handwriting", "extra_lora": "embedded:sketch"},
        ),
    )
    custom_sizes_in_fp8: bool = False
    """The API documents that custom sizes run in bf16 whatever `go_fast` says; True lifts that."""
    fp8_lora_factor: Annotated[float, Field(gt=0)] = 1.5
    """The API documents that LoRAs act more weakly on float8 weights, so pools in fp8 multiply their scales by this."""
    max_body_bytes: Positive = 32 * 2**20
    max_prompt_chars: Positive = 10_000
    max_image_megapixels: Annotated[float, Field(gt=0)] = 50
    """Input pictures that say to be larger are refused before they are decoded."""
    record_max_age_s: Seconds = 3600
    max_records: Positive = 10_000
    max_wait_s: Seconds = 60
    """`Prefer: wait` without a number, and its upper bound."""
    ingress_replicas: Literal[1] = 1
    """Records live in the ingress' memory: a second replica would not know those of the first."""
    ingress_num_cpus: Annotated[float, Field(ge=0)] = 0.4
    allow_unauthenticated: bool = False
    """Listen beyond loopback although no token guards the service: only behind something else that does."""
    cache_folder: Path | None = None
    """Where LoRAs are kept, if `lora.cache` names no folder; None is the user's cache folder."""
    fetch: FetchSettings = FetchSettings()
    lora: LoraSettings = LoraSettings()
    outputs: OutputSettings = OutputSettings()
    safety: SafetySettings = SafetySettings()

    @model_validator(mode="after")
    def _rows_agree(self) -> Self:
        for name, pool in self.pools.items():
            if pool.model not in self.models:
                raise ValueError(f"pools.{name}.model: there is no row {pool.model!r} in models")
            if pool.device not in pool.dtypes:
                raise ValueError(f"pools.{name}.dtypes: no entry for the device {pool.device!r}")
        names = [model.full_name for model in self.served_models]
        versions = [version for model in self.served_models for version in model.versions]
        if len(set(names)) < len(names) or len(set(versions)) < len(versions):
            raise ValueError("served_models: names and version ids must be unique")
        return self

    def variant_of(self, pool: str) -> VariantName:
        return self.models[self.pools[pool].model].variant


class Secrets(Strict):
    """What must not stand in a file: read from the environment of the process that needs it."""

    api_token: SecretStr | None = None
    """Guards every face."""
    hf_token: SecretStr | None = None
    """Opens gated repositories of the Hugging Face hub."""
    civitai_token: SecretStr | None = None
    """Opens downloads on CivitAI that need an account."""
    replicate_token: SecretStr | None = None
    """Opens private models on Replicate."""


ENVIRONMENT_VARIABLES = {
    "api_token": "FLUX_SERVE_TOKEN",
    "hf_token": "HF_TOKEN",
    "civitai_token": "CIVITAI_API_TOKEN",
    "replicate_token": "REPLICATE_API_TOKEN",
}
"""Field of `Secrets` to the environment variable that holds it."""


def read_secrets(environment: Mapping[str, str] = os.environ) -> Secrets:
    """The secrets in `VARIABLES`; an empty one counts as not set."""
    named = {field: environment.get(variable) for field, variable in ENVIRONMENT_VARIABLES.items()}
    return Secrets.model_validate({field: value for field, value in named.items() if value})


def cache_folder(settings: Settings, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder for what can be made again: `cache_folder`, else the user's cache by the XDG convention."""
    if settings.cache_folder is not None:
        return settings.cache_folder
    base = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "/tmp")) / ".cache"
    return Path(base) / "flux-serve"


def override(tree: Mapping[str, Any], dotted: str, value: str) -> dict[str, Any]:
    """`tree` with the entry at a dotted name replaced; the value is read as YAML, so `4` and `true` are typed."""
    head, _, rest = dotted.partition(".")
    below = tree.get(head)
    new = override(below if isinstance(below, Mapping) else {}, rest, value) if rest else yaml.safe_load(value)
    return {**tree, head: new}
