"""All settings, as immutable pydantic models that reject unknown keys, and the secrets from the environment.

The defaults run the embedded models on a CPU, on a loopback address. `serve_config.yaml` has the production settings.
No other module reads or changes the environment.
"""

import os
from collections.abc import Mapping, MutableMapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from serve.model_specs import EMBEDDED, Size, VariantName

Precision = Literal["bf16", "fp8", "float32"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Device = Literal["cpu", "cuda"]
Fp8Kernel = Literal["auto", "rowwise", "quanto"]
CompiledPart = Literal["transformer", "vae", "text_encoders"]
AttentionKernel = Literal["auto", "cudnn", "flash", "flash4", "efficient", "math"]
LoraProduct = Literal["auto", "per_image", "per_batch"]
SchedulingPolicy = Literal["deadline", "turns"]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class StrictModel(BaseModel):
    """An immutable model that rejects unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(StrictModel):
    """A checkpoint, and properties that are verified when it is loaded."""

    variant: VariantName
    source: str = EMBEDDED
    """`embedded` for the small model in this package, a folder in diffusers' layout, or a Hugging Face repository."""
    revision: str | None = None
    """Commit of the Hugging Face repository."""
    pixel_stride: Positive = 16
    """Side of one transformer token in pixels: the VAE's scale factor times 2, as latents are packed 2x2."""
    max_sequence_length: Positive
    """Every T5 prompt is padded or truncated to this many tokens."""


class Dtypes(StrictModel):
    """The dtype in which each part of a checkpoint computes.

    `auto` means bfloat16 if the device computes it fast, which is measured at start-up, otherwise float32 with the same
    weights: they are rounded to bfloat16 in both cases.
    """

    transformer: Dtype
    text_encoders: Dtype
    vae: Dtype


class Scaling(StrictModel):
    """The `autoscaling_config` of a pool's deployment, by the names of Ray Serve.

    The default delays are shorter than Ray Serve's, because requests take seconds.
    """

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


_ON_DEMAND = Scaling(min_replicas=0, downscale_to_zero_delay_s=3600)
"""The first request starts the replica and waits for it."""


_COMPILED_PARTS: tuple[CompiledPart, ...] = ("transformer", "vae")
"""On a GPU. Text encoders take one percent of an image's time."""


class PoolSettings(StrictModel):
    """A pool of replicas that serve one model at one precision."""

    model: str
    """A key of `models`."""
    precision: Precision = "bf16"
    device: Device = "cpu"
    dtypes: dict[Device, Dtypes] = Field(
        default={
            # bf16 convolutions on a CPU are 30 to 60 times slower than float32 ones.
            "cpu": Dtypes(transformer="auto", text_encoders="auto", vae="float32"),
            "cuda": Dtypes(transformer="bfloat16", text_encoders="bfloat16", vae="bfloat16"),
        }
    )
    quantize_t5: bool = False
    """Quantize T5's linear layers to float8 as well, which halves its memory."""
    fp8_kernel: Fp8Kernel = "auto"
    """How fp8 layers multiply: `rowwise` in float8 on GPUs with float8 units, `quanto` in the compute dtype."""
    compile: tuple[CompiledPart, ...] | None = None
    """Parts that `torch.compile` compiles; None means transformer and VAE on a GPU, and nothing on a CPU."""
    cuda_graphs: bool = True
    """Replay the kernels of a pass as a CUDA graph. Has no effect on a CPU."""
    attention: AttentionKernel = "auto"
    """The kernel of the transformer's attention; `auto` means the fastest, which is measured at start-up on a GPU."""
    run_ahead: bool = True
    """Queue the next pass on the GPU while the current one runs. Has no effect on a CPU."""
    precompute_modulation: bool = True
    """Compute the modulation vectors of all steps when a request starts, rather than in every step."""
    lora_product: LoraProduct = "auto"
    """Multiply the LoRAs of a batch image by image or together; `auto` means together on a GPU or if compiled.

    Image by image, batches with LoRAs run uncompiled.
    """
    scheduling_policy: SchedulingPolicy = "deadline"
    """Which images advance next: `deadline` favours short work, with `turns` all sizes advance alternately."""
    max_batch: Positive = 8
    """Maximum number of images in one transformer pass."""
    disable_batching: bool = False
    """Run every image in a batch of one. On a GPU the batch size may change rounding; this prevents it."""
    warmup_sizes: tuple[Size, ...] = ((512, 512),)
    """Sizes that a replica generates once before it reports ready. On a GPU, the first run of a size is slower."""
    max_megapixels: Annotated[float, Field(gt=0)] = 2.1
    """Requests for larger images are rejected."""
    num_threads: Positive | None = None
    """CPU threads of torch; None means one for each CPU that the replica may use, at most 8."""
    prompt_cache_entries: Annotated[int, Field(ge=0)] = 64
    lora_bytes: Positive = 256 * 2**20
    """Device memory reserved for LoRAs. FLUX takes 11.2 MB for each rank, so 179 MB for a LoRA of rank 16."""
    batch_across_loras: bool = True
    """Batch images with different LoRAs. If false, only images with the same LoRAs and scales share a batch."""
    max_in_flight: Positive = 64
    """Maximum number of unfinished predictions over all replicas; further ones are rejected with 429."""
    max_ongoing_requests: Positive = 16
    """Predictions that one replica runs at once."""
    graceful_shutdown_timeout_s: Annotated[float, Field(ge=120)] = 120
    """How long a replica that is being removed may take to finish its predictions."""
    health_check_period_s: Seconds = 10
    health_check_timeout_s: Seconds = 30
    num_cpus: Annotated[float, Field(ge=0)] = 0.4
    num_gpus: Annotated[float, Field(ge=0)] = 0
    scaling: Scaling = Scaling()

    @property
    def compiled_parts(self) -> tuple[CompiledPart, ...]:
        if self.compile is None:
            return _COMPILED_PARTS if self.device == "cuda" else ()
        return self.compile

    @property
    def lora_product_per_batch(self) -> bool:
        """Whether the LoRAs of all images of a batch are multiplied together."""
        return self.lora_product == "per_batch" or (
            self.lora_product == "auto" and (self.device == "cuda" or "transformer" in self.compiled_parts)
        )


class ServedModel(StrictModel):
    """A model as clients see it: `owner/name`, its version ids, and its default inputs."""

    owner: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    versions: Annotated[tuple[str, ...], Field(min_length=1)]
    """Version ids, newest first."""
    default_inputs: dict[str, Any] = {}

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"


class FetchSettings(StrictModel):
    """Limits on downloads from URLs in requests."""

    max_bytes: Positive = 64 * 2**20
    connect_timeout_s: Seconds = 5
    read_timeout_s: Seconds = 15
    total_timeout_s: Seconds = 60
    max_redirects: Annotated[int, Field(ge=0)] = 5
    max_attempts: Positive = 3
    """Attempts in total. Only failed connections, 429 and 5xx are retried."""
    backoff_s: Seconds = 0.5
    """Pause before the second attempt. It doubles with each further attempt, and up to half of it is cut at random."""
    max_concurrent: Positive = 16
    allowed_hosts: tuple[str, ...] = ()
    """Hosts, or `host:port`, from which downloads are allowed although their addresses are not public."""


Url = Annotated[str, Field(pattern=r"^https?://[^/?#@]+(/[^?#]*)?$")]


class LoraFetchSettings(FetchSettings):
    """The same limits for LoRAs, which are larger than images."""

    max_bytes: Positive = 2 * 2**30
    read_timeout_s: Seconds = 30
    total_timeout_s: Seconds = 900
    max_attempts: Positive = 4
    max_concurrent: Positive = 8


class LoraCacheSettings(StrictModel):
    """The LoRA cache: one actor for the whole cluster, with entries in memory and on disk."""

    memory_bytes: Positive = 64 * 2**20
    """Maximum use of its node's object store. A FLUX LoRA takes tens to hundreds of MB."""
    disk_bytes: Positive = 4 * 2**30
    folder: Path | None = None
    """Folder on the disk of the actor's node; None means `loras` in the cache folder."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {"node:__internal_head__": 0.001}
    """Ray resources that select the actor's node, by default the head node.

    Choose a permanent node: the autoscaler cannot remove a node while cache entries are in its object store.
    """
    start_timeout_s: Seconds = 120


class LoraSettings(StrictModel):
    """Sources of LoRAs, and limits on them."""

    aliases: dict[str, str] = {}
    """Names that clients may use, each mapped to a LoRA reference or a local file."""
    folders: tuple[Path, ...] = ()
    """Local folders from which clients may request LoRA files by path; none by default."""
    allow_http: bool = False
    """Allow LoRA downloads over plain http, which an attacker on the network can replace."""
    huggingface_url: Url = "https://huggingface.co"
    civitai_url: Url = "https://civitai.com"
    replicate_url: Url = "https://replicate.com"
    s3_url: Url = "https://{bucket}.s3.amazonaws.com"
    """Base URL of a bucket's objects; for another S3 server, for example, `http://store.internal:9000/{bucket}`."""
    fetch: LoraFetchSettings = LoraFetchSettings()
    cache: LoraCacheSettings = LoraCacheSettings()
    max_unpacked_bytes: Positive = 4 * 2**30
    """Maximum unpacked size of an archive."""
    max_rank: Positive = 256
    max_tensors: Positive = 10_000
    revalidate_after_s: Seconds = 300
    """References that may change, such as `owner/name`, are resolved again after this time."""
    failure_ttl_s: Seconds = 30
    """How long a failed reference keeps failing without another attempt."""


class OutputSettings(StrictModel):
    """Where finished images are stored, and how responses refer to them."""

    folder: Path | None = None
    """Local folder; None means a temporary one. With several nodes, use a shared file system."""
    public_url: str = "http://127.0.0.1:8000"
    """Base of every URL in a response. The Host header is not used, because clients choose it."""
    delivery: Literal["auto", "data", "url"] = "auto"
    """`auto` means `data:` URIs if `public_url` is plain http, as official clients handle only https: and data:."""
    max_age_s: Seconds = 3600
    max_bytes: Positive = 2 * 2**30

    @property
    def base_url(self) -> str:
        """`public_url` without a slash at its end."""
        return self.public_url.rstrip("/")

    @property
    def uses_data_uris(self) -> bool:
        """Whether responses have `data:` URIs instead of URLs."""
        return self.delivery == "data" or (self.delivery == "auto" and not self.public_url.startswith("https:"))


class FileSettings(StrictModel):
    """Files that clients upload to `/v1/files`, as inputs of later predictions."""

    folder: Path | None = None
    """Local folder of one ingress; None means a temporary one. Files of an earlier process in it are removed."""
    max_file_bytes: Positive = 2**30
    max_bytes: Positive = 4 * 2**30
    """Total size. When it is reached, the oldest files are removed first; uploads in progress count too."""
    max_files: Positive = 1000
    max_age_s: Seconds = 24 * 3600
    upload_timeout_s: Seconds = 600
    """Time in which the whole body of an upload must arrive."""

    @model_validator(mode="after")
    def _one_file_fits(self) -> Self:
        if self.max_file_bytes > self.max_bytes:
            raise ValueError("max_file_bytes is larger than max_bytes")
        return self


class SafetySettings(StrictModel):
    """The safety checker for generated images."""

    checker: Literal["opennsfw", "flux", "none"] = "opennsfw"
    """`opennsfw` includes its weights; `flux` runs the two models below, which are downloaded from Hugging Face."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.8
    """`opennsfw` flags images with at least this score."""
    concept_model: str = "CompVis/stable-diffusion-safety-checker"
    classifier_model: str = "Falconsai/nsfw_image_detection"
    device: Device = "cpu"
    allow_disabling: bool = True
    """Whether requests may set `disable_safety_checker`."""


class Settings(StrictModel):
    """The root of all settings."""

    models: Annotated[dict[str, ModelSettings], Field(min_length=1)] = {
        "dev": ModelSettings(variant="dev", pixel_stride=32, max_sequence_length=64),
        "schnell": ModelSettings(variant="schnell", pixel_stride=32, max_sequence_length=64),
    }
    pools: Annotated[dict[str, PoolSettings], Field(min_length=1)] = {
        "dev-bf16": PoolSettings(model="dev"),
        # On two cores, one replica is ready in two thirds of the time of three that start together.
        "dev-fp8": PoolSettings(model="dev", precision="fp8", scaling=_ON_DEMAND),
        "schnell": PoolSettings(model="schnell", scaling=_ON_DEMAND),
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
    """Allow `go_fast` for custom sizes. By default they run in bf16, as Replicate documents."""
    fp8_lora_factor: Annotated[float, Field(gt=0)] = 1.5
    """Factor for LoRA scales in fp8 pools. Replicate documents that LoRAs have less effect on float8 weights."""
    max_body_bytes: Positive = 32 * 2**20
    max_prompt_chars: Positive = 10_000
    max_image_megapixels: Annotated[float, Field(gt=0)] = 50
    """Input images with larger dimensions in their header are rejected before they are decoded."""
    record_max_age_s: Seconds = 3600
    max_records: Positive = 10_000
    max_wait_s: Seconds = 60
    """Upper limit for `Prefer: wait=N`, and the wait for a plain `Prefer: wait`."""
    ingress_replicas: Literal[1] = 1
    """Only one is supported: prediction records are in the ingress' memory, so replicas could not share them."""
    ingress_num_cpus: Annotated[float, Field(ge=0)] = 0.4
    allow_unauthenticated: bool = False
    """Allow listening on other addresses than loopback without a token. Use only behind a proxy that authenticates."""
    cache_folder: Path | None = None
    """Parent of the default LoRA cache folder; None means the user's cache folder."""
    fetch: FetchSettings = FetchSettings()
    lora: LoraSettings = LoraSettings()
    outputs: OutputSettings = OutputSettings()
    files: FileSettings = FileSettings()
    safety: SafetySettings = SafetySettings()

    @model_validator(mode="after")
    def _references_exist(self) -> Self:
        for name, pool in self.pools.items():
            if pool.model not in self.models:
                raise ValueError(f"pools.{name}.model: no model is named {pool.model!r} in models")
            if pool.device not in pool.dtypes:
                raise ValueError(f"pools.{name}.dtypes: has no entry for device {pool.device!r}")
        names = [model.full_name for model in self.served_models]
        versions = [version for model in self.served_models for version in model.versions]
        if len(set(names)) < len(names) or len(set(versions)) < len(versions):
            raise ValueError("served_models: names and version ids must be unique")
        return self

    def variant_of(self, pool: str) -> VariantName:
        return self.models[self.pools[pool].model].variant


class Secrets(StrictModel):
    """Secrets, read from the environment because they must not be in a config file."""

    api_token: SecretStr | None = None
    """Required from clients on every path."""
    hf_token: SecretStr | None = None
    """For gated Hugging Face repositories."""
    civitai_token: SecretStr | None = None
    """For CivitAI downloads that need an account."""
    replicate_token: SecretStr | None = None
    """For private models on Replicate."""


ENVIRONMENT_VARIABLES = {
    "api_token": "FLUX_SERVE_TOKEN",
    "hf_token": "HF_TOKEN",
    "civitai_token": "CIVITAI_API_TOKEN",
    "replicate_token": "REPLICATE_API_TOKEN",
}
"""The environment variable for each field of `Secrets`."""


def read_secrets(environment: Mapping[str, str] = os.environ) -> Secrets:
    """The secrets in `ENVIRONMENT_VARIABLES`; an empty variable counts as unset."""
    values = {field: environment.get(variable) for field, variable in ENVIRONMENT_VARIABLES.items()}
    return Secrets.model_validate({field: value for field, value in values.items() if value})


def cache_folder(settings: Settings, environment: Mapping[str, str] = os.environ) -> Path:
    """The setting `cache_folder`, or else `flux-serve` in the user's cache folder, by the XDG convention."""
    if settings.cache_folder is not None:
        return settings.cache_folder
    base = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "/tmp")) / ".cache"
    return Path(base) / "flux-serve"


def use_compile_cache(settings: Settings, environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes torch's compiler keep its results in the cache folder, where other replicas of this node find them.

    Call it before torch is imported. The results are keyed by the GPU, the code and the sizes; torch's version, which
    does the keying, is in the folder's name.
    """
    folder = cache_folder(settings) / "compiled" / f"torch-{version('torch')}"
    environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def override(tree: Mapping[str, Any], dotted: str, value: str) -> dict[str, Any]:
    """A copy of `tree` with the entry at a dotted name replaced by `value`, which is parsed as YAML."""
    key, _, rest = dotted.partition(".")
    nested = tree.get(key)
    new = override(nested if isinstance(nested, Mapping) else {}, rest, value) if rest else yaml.safe_load(value)
    return {**tree, key: new}
